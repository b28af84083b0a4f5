"Small files as people have them: every form in every kind of file, and files broken each in its own way"
import gzip, json

def said(*turns): return [dict(role=r, content=c) for r,c in turns]
FORMS = dict( # form → rows as a person has them, and the first row as messages, written by hand
    messages=([dict(messages=said(('user', 'Hi'), ('assistant', 'Yo'))), dict(messages=said(('system', 'Be kind'), ('user', 'Née?'), ('assistant', 'Oui')))],
        said(('user', 'Hi'), ('assistant', 'Yo'))),
    sharegpt=([dict(conversations=[{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yo'}])]*2, said(('user', 'Hi'), ('assistant', 'Yo'))),
    alpaca=([dict(instruction='Add', input='1 and 2', output='3'), dict(instruction='Greet', input='', output='Hello')], said(('user', 'Add\n\n1 and 2'), ('assistant', '3'))),
    prompt_completion=([dict(prompt='Hi', completion='Yo'), dict(prompt='two\nlines', completion='"quoted", and so on')], said(('user', 'Hi'), ('assistant', 'Yo'))),
    question_answer=([dict(id=1, Question='Who?', Answer='Me'), dict(id=2, Question='Why?', Answer='So')], said(('user', 'Who?'), ('assistant', 'Me'))),
    dialogue_summary=([dict(dialogue='A: Tea?\nB: Please.', summary='They have tea.')]*2,
        said(('user', 'Summarize the following text.\n\nA: Tea?\nB: Please.'), ('assistant', 'They have tea.'))),
    source_target=([dict(source='cat', target='Katze'), dict(source='dog', target='Hund')], said(('user', 'cat'), ('assistant', 'Katze'))),
    text_label=([dict(text='It works', label='good'), dict(text='It broke', label='bad')], said(('user', 'Classify the following text.\n\nIt works'), ('assistant', 'good'))),
    text=([dict(text='Once upon a time'), dict(text='there was a loss')], [dict(role='text', content='Once upon a time')]))

def flat(rows): return [{k: json.dumps(v) if isinstance(v, list) else v for k,v in r.items()} for r in rows]
def frame(rows): return __import__('pandas').DataFrame(rows)
def table(rows): return __import__('pyarrow').Table.from_pylist(rows)
def jsonl(rows): return ''.join(json.dumps(r, ensure_ascii=False)+'\n' for r in rows).encode()

def arrow(path, rows):
    import pyarrow as pa
    t = table(rows)
    with pa.OSFile(str(path), 'wb') as f, pa.ipc.new_stream(f, t.schema) as w: w.write_table(t)

def parquet(path, rows):
    import pyarrow.parquet as pq
    pq.write_table(table(rows), path)

KINDS = {'jsonl': lambda p, rs: p.write_bytes(jsonl(rs)), 'jsonl.gz': lambda p, rs: p.write_bytes(gzip.compress(jsonl(rs))),
    'json': lambda p, rs: p.write_text(json.dumps(rs, indent=1)),
    'csv': lambda p, rs: frame(flat(rs)).to_csv(p, index=False), 'tsv': lambda p, rs: frame(flat(rs)).to_csv(p, index=False, sep='\t'),
    'csv.gz': lambda p, rs: frame(flat(rs)).to_csv(p, index=False), 'parquet': parquet, 'arrow': arrow}

G = '{"prompt": "a", "completion": "b"}\n'
ALSO = { # file → (content, form, rows): unusual, and still read
    'bom.csv': (b'\xef\xbb\xbfprompt,completion\na,b\n', 'prompt_completion', 1), 'semicolons.csv': (b'prompt;completion\na, b;c\n', 'prompt_completion', 1),
    'crlf.csv': (b'prompt,completion\r\n"a\r\nb",c\r\n', 'prompt_completion', 1), 'blank_lines.jsonl': (f'\n{G}\n\n{G}'.encode(), 'prompt_completion', 2),
    'lines.json': ((G*3).encode(), 'prompt_completion', 3), 'columns.json': (b'{"prompt": ["a", "b"], "completion": ["c", "d"]}', 'prompt_completion', 2),
    'pandas.json': (b'{"question": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}', 'question_answer', 2),
    'splits.json': (b'{"train": [{"text": "a"}, {"text": "b"}], "test": [{"text": "c"}]}', 'text', 3), 'wrapped.json': (b'{"version": 1, "data": [{"text": "a"}]}', 'text', 1),
    'strings.jsonl': (b'"one"\n"two"\n', 'text', 2), 'story.txt': (b'one\n\ntwo\n', 'text', 2), 'story.txt.gz': (gzip.compress(b'one\ntwo\n'), 'text', 2),
    'dolly.jsonl': (b'{"instruction": "a", "context": "b", "response": "c", "category": "d"}\n', 'alpaca', 1), 'no_newline.jsonl': (G.strip().encode(), 'prompt_completion', 1),
    'squad.jsonl': (b'{"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}}\n', 'question_answer', 1),
    'wmt.jsonl': (b'{"translation": {"de": "Katze", "en": "cat"}}\n', 'source_target', 1), 'strange.csv': (b'alpha,beta\n1,2\n', 'unknown', 1),
    'roles.jsonl': (b'{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n', 'sharegpt', 1),
    'PK.csv': (b'PK,prompt,completion\n1,a,b\n', 'prompt_completion', 1), 'spaces.csv': (b' Prompt , Completion \na,b\n', 'prompt_completion', 1), 'huge_cell.csv': (b'prompt,completion\na,'+b'x'*200_000+b'\n', 'prompt_completion', 1)}

REFUSED = { # file → (content, the one line)
    'empty.jsonl': (b'', 'empty.jsonl is empty'), 'blank.jsonl': (b'\n \n', 'blank.jsonl has no rows'), 'header_only.csv': (b'prompt,completion\n', 'header_only.csv has no rows'),
    'twice.csv': (b'prompt,prompt\na,b\n', "twice.csv, line 1: two columns are called 'prompt'"),
    'nameless.csv': (b'prompt,,completion\na,b,c\n', 'nameless.csv, line 1: column 2 has no name. The first line must name the columns'),
    'open_header.csv': (b'"prompt,completion\na,b\n', 'open_header.csv, line 1: a quote is opened here and never closed: it swallows all 2 lines to the end of the file'),
    'utf16.csv': ('prompt,completion\na,b\n'.encode('utf-16'), 'utf16.csv is UTF-16: save it as UTF-8'),
    'excel.csv': (b'PK\x03\x04\x14\x00', 'excel.csv is a zip archive (perhaps an Excel sheet): save it as CSV or JSON lines'),
    'sheet.xlsx': (b'PK', 'sheet.xlsx: this file type is not supported: save the sheet as CSV'),
    'rows.pkl': (b'\x80', 'rows.pkl: this file type is not supported: pickles can execute code and are never opened: write JSON lines'),
    'rows.jsnl': (G.encode(), "rows.jsnl: this file type is not supported. Supported: .jsonl, .ndjson, .csv, .tsv, .txt, .text, .md, .json, .parquet, .pq, .arrow, .feather "
        "(all but the last four also as .gz). Did you mean '.jsonl'?"),
    'cut.parquet': (b'PAR1\x15\x04', 'cut.parquet is not a complete Parquet file (6 bytes)'), 'text.arrow': (b'not arrow', 'text.arrow is not a complete Arrow file (9 bytes)'),
    'cut.jsonl.gz': (gzip.compress(G.encode()*50)[:30], 'cut.jsonl.gz: the archive is damaged after line 0. Unpack it by hand or download it again'),
    'plain.jsonl.gz': (G.encode(), 'plain.jsonl.gz: the archive is damaged after line 0. Unpack it by hand or download it again'),
    'open.json': (b'[{"text": "a"},\n {"text": "b"}', 'open.json, line 2: not JSON: the list is never closed at character 15'),
    'comma.json': (b'[\n{"text": "a"},\n]', 'comma.json, line 3: not JSON: comma before the end of the list at character 1'),
    'missing.json': (b'[{"text": "a"}\n {"text": "b"}]', "missing.json, line 2: not JSON: expected ',' between rows at character 2"),
    'quotes.json': (b"[{'text': 'a'}]", 'quotes.json, line 1: not JSON: Expecting property name enclosed in double quotes at character 3'),
    'number.json': (b'42', 'number.json: expected a list of rows, got a number'),
    'unequal.json': (b'{"prompt": ["a", "b"], "completion": ["c"]}', 'unequal.json: the columns differ in length: prompt 2, completion 1')}

NOTED = { # file → (content, rows, the one note): read with a word about it
    'latin.json': (b'[{"text": "a"},\n{"text": "caf\xe9"}]', 2, "latin.json is not UTF-8 and was read as Windows-1252 (for example 'café'). If letters are wrong, save it as UTF-8")}

PARTLY = { # file → (content, rows that are read, the line of its problem)
    'cut_line.jsonl': (f'{G}{{"prompt": "a", "compl\n{G}', 2, 'cut_line.jsonl, line 2: not one JSON object: Unterminated string starting at character 17'),
    'null.jsonl': (f'null\n{G}', 1, 'null.jsonl, line 1: expected an object such as {"prompt": …, "completion": …}, got null'),
    'list.jsonl': (f'{G}[1, 2]\n', 1, 'list.jsonl, line 2: expected an object such as {"prompt": …, "completion": …}, got a list'),
    'object.jsonl': (f'{G}{{}}\n', 1, 'object.jsonl, line 2: expected an object with keys, got an empty one'),
    'surrogate.jsonl': (G+'{"prompt": "\\ud83d", "completion": "b"}\n', 1, 'surrogate.jsonl, line 2, column prompt: contains half a character (a lone surrogate): the file was truncated or converted incorrectly'),
    'nested.jsonl': (G+'{"prompt": "a", "completion": {"b": 1}}\n', 1, 'nested.jsonl, line 2, column completion: expected text, got an object'),
    'fields.csv': (b'prompt,completion\na,b\na,b,c\nd,e\n', 2, 'fields.csv, line 3: expected 2 fields (prompt, completion), got 3'),
    'open.csv': (b'prompt,completion\na,b\n"c,d\ne,f\n', 1, 'open.csv, line 3: a quote is opened here and never closed: it swallows all 2 lines to the end of the file'),
    'inner.csv': (b'prompt,completion\na,b\n"c"d",e\nf,g\n', 2, 'inner.csv, line 3: unescaped quote inside a quoted field: write it twice ("")'),
    'role.jsonl': ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n{"messages": [{"role": "usr", "content": "a"}]}\n', 1,
        "role.jsonl, line 2, column messages: unknown role 'usr'; allowed are user, assistant, system, tool, function_call and common synonyms, such as human and gpt. Did you mean 'user'?"),
    'turn.jsonl': ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "user", "text": "a"}]}\n', 1, "turn.jsonl, line 2, column messages: message 1 has no 'content'; its keys are role, text"),
    'turns.jsonl': ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": {"role": "user"}}\n', 1, 'turns.jsonl, line 2, column messages: expected a list of messages, got an object'),
    'strings.jsonl': ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": ["a"]}\n', 1, "strings.jsonl, line 2, column messages: expected messages with 'role' and 'content', got text in the list"),
    'image.jsonl': ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}\n', 1,
        "image.jsonl, line 2, column messages: a message contains 'image_url', but only text can be trained on"),
    'text_turns.csv': (b'messages\n"[{""role"": ""user"", ""content"": ""a""}]"\nhello\n', 1,
        'text_turns.csv, line 3, column messages: expected a list of messages, got text that is not JSON (Expecting value: line 1 column 1 (char 0))'),
    'element.json': ('[{"text": "a"},\n\n 7]', 1, 'element.json, line 3: expected an object such as {"prompt": …, "completion": …}, got a number')}
