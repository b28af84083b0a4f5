"A corpus of small files: each is read as the right form, or answered with the right line; and everything else that can be a source"
import json, subprocess, sys
import polars, pytest, tiny
from huggingface_hub import errors
from requests import Response
from corpus import ALSO, FORMS, KINDS, PARTLY, REFUSED, frame, jsonl
from qlora_nb.data.rows import inspect
from qlora_nb.errors import QLoRAError
from qlora_nb.data.forms import detect
from qlora_nb.data.rows import read
from qlora_nb.data.sources import choose, hub_parts, parts
from qlora_nb.data.splits import mix, split_off

@pytest.fixture(autouse=True)
def folder(empty): return empty

def line(e): # the one line of an error
    assert len(str(e.value).splitlines())==1
    return str(e.value)

def test_the_corpus_is_large_enough():
    assert len(FORMS)*len(KINDS)+len(ALSO)+len(REFUSED)+len(PARTLY)>=60 and len(REFUSED)+len(PARTLY)>=25
    said = [r[-1] for r in (*REFUSED.values(), *PARTLY.values())]
    assert len(set(said))==len(said)

@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('form', FORMS)
def test_every_form_in_every_file(form, name, folder):
    rows,first = FORMS[form]
    KINDS[name](folder/f'rows.{name}', rows)
    seen = inspect(f'rows.{name}', {})
    assert (seen.form, seen.rows, seen.splits, seen.problems)==(form, 2, dict(train=2), []) and seen.messages[0]==first

@pytest.mark.parametrize('name', ALSO)
def test_unusual_files(name, folder):
    content,form,n = ALSO[name]
    (folder/name).write_bytes(content)
    seen = inspect(name, {})
    assert (seen.form, seen.rows, seen.problems)==(form, n, [])

@pytest.mark.parametrize('name', REFUSED)
def test_broken_files(name, folder):
    content,said = REFUSED[name]
    (folder/name).write_bytes(content)
    with pytest.raises(QLoRAError) as e: inspect(name, {})
    assert line(e)==said

@pytest.mark.parametrize('name', PARTLY)
def test_broken_rows(name, folder):
    content,n,said = PARTLY[name]
    (folder/name).write_bytes(content if isinstance(content, bytes) else content.encode())
    seen = inspect(name, {}, side='bad/unreadable.jsonl')
    assert seen.rows==n and [str(p) for p in seen.problems]==[said] and said in seen.notes[-1] and said in str(seen)
    side, = [json.loads(o) for o in (folder/'bad'/'unreadable.jsonl').read_text().splitlines()]
    assert (side['file'], side['line'])==(name, seen.problems[0].line) and side['problem'] in said

def test_nothing_readable_is_one_line(folder):
    (folder/'a.jsonl').write_text('x\ny\nz\n')
    with pytest.raises(QLoRAError) as e: inspect('a.jsonl', {})
    assert line(e)=='no row of a.jsonl can be read: a.jsonl, line 1: not one JSON object: Expecting value at character 1 (and 2 more)'

def test_all_problems_go_to_the_side_file_and_few_stay_in_memory(folder):
    (folder/'a.jsonl').write_text('{"text": "a"}\n'+'x\n'*250)
    seen = inspect('a.jsonl', {}, side='side.jsonl')
    assert len(seen.problems)==100 and seen.unreadable==250 and len((folder/'side.jsonl').read_text().splitlines())==250
    assert '250 of 251 rows could not be read' in str(seen) and 'side.jsonl' in str(seen)

# ---- folders, patterns, variables, the hub

def test_a_folder_and_a_pattern(folder):
    (folder/'d'/'deep').mkdir(parents=True)
    for name,n in (('train-0.jsonl', 2), ('deep/train-1.jsonl', 3), ('test.jsonl', 1)): (folder/'d'/name).write_bytes(jsonl(tiny.rows(n)))
    (folder/'d'/'README').write_text('x')
    assert inspect('d', {}).splits==dict(train=5, test=1) and inspect('d/**/*.jsonl', {}).splits==dict(train=5, test=1) and inspect('d/train*', {}).rows==2
    assert inspect('d', {}).at(0)=='train-1.jsonl, line 1'

@pytest.mark.parametrize('source,said', [('nothing', 'nothing: no file of a supported type (there are .exe). Supported: .jsonl'), ('*.yaml', "no file matches '*.yaml'"),
    ('rows.jsnl', "no such file: rows.jsnl. Did you mean 'rows.jsonl'?"), ('half', 'half was written by save_to_disk, but some of its files are missing')])
def test_folders_without_data(source, said, folder):
    (folder/'nothing').mkdir()
    (folder/'nothing'/'a.exe').write_text('x')
    (folder/'half').mkdir()
    (folder/'half'/'state.json').write_text('{}')
    (folder/'rows.jsonl').write_bytes(jsonl(tiny.rows(2)))
    if source=='rows.jsnl': source = './rows.jsnl'
    with pytest.raises(QLoRAError) as e: inspect(source, {})
    assert line(e).replace('./', '').startswith(said)

def sets():
    from datasets import Dataset
    return Dataset.from_list(tiny.rows(5))

MADE = dict(list=list, frame=frame, dataset=lambda rs: sets(), columns=lambda rs: {k: [r[k] for r in rs] for k in rs[0]},
    stream=lambda rs: sets().to_iterable_dataset(), table=lambda rs: sets().data.table, polars=polars.DataFrame)

@pytest.mark.parametrize('make', MADE)
def test_variables(make):
    made = MADE[make](tiny.rows(5))
    for seen in (inspect('v', dict(v=made)), inspect(made)):
        assert (seen.form, seen.rows)==('prompt_completion', 5) and seen.messages[4][1]['content']==tiny.rows(5)[4]['completion']

def test_variables_with_splits(folder):
    from datasets import DatasetDict
    made = DatasetDict(train=sets(), test=sets())
    made.save_to_disk(str(folder/'saved'))
    for source in (made, dict(train=tiny.rows(5), test=tiny.rows(5)), 'saved'): assert inspect(source, {}).splits==dict(train=5, test=5)
    assert [p.name for p in choose(parts('v', dict(v=made)), 'validation')]==["v['test']"]
    with pytest.raises(QLoRAError, match="no split 'tset'; there are train, test.*'test'"): choose(parts('v', dict(v=made)), 'train', 'tset')

def test_turns_as_a_dict_of_lists():
    from datasets import Dataset, Features, Sequence, Value
    f = Features(dict(messages=Sequence(dict(role=Value('string'), content=Value('string')))))
    d = Dataset.from_dict(dict(messages=[dict(role=['user', 'assistant'], content=['Hi', 'Yo'])]), features=f)
    assert [m['content'] for m in inspect(d).messages[0]]==['Hi', 'Yo']

def test_empty_cells_of_a_frame_are_empty_texts():
    import numpy as np
    seen = inspect(frame([dict(instruction='Add', input=np.nan, output=3), dict(instruction='Sum', input='1', output=2)]))
    assert [m['content'] for m in seen.messages[0]]==['Add', '3']

def test_numbered_labels_get_their_names(folder):
    from datasets import ClassLabel, Dataset, Features, Value
    d = Dataset.from_dict(dict(text=['a', 'b'], label=[1, 0]), features=Features(dict(text=Value('string'), label=ClassLabel(names=['bad', 'good']))))
    d.to_parquet(str(folder/'l.parquet'))
    for source in (d, 'l.parquet'): assert [m[1]['content'] for m in inspect(source, {}).messages]==['good', 'bad']

@pytest.mark.parametrize('v,said', [(3, 'source: must be a name as under data.train, or a DataFrame, a list of dicts, a dict of columns or of splits, or a Dataset, got 3 of type int'), ([], 'rows has no rows'), (dict(a=[1], b=[1, 2]), 'rows: the columns differ in length: a 1, b 2')])
def test_variables_that_are_no_rows(v, said):
    with pytest.raises(QLoRAError) as e: inspect(v)
    assert line(e).startswith(said)

@pytest.mark.parametrize('error,said', [(ConnectionError('x'), 'no file and no variable here, and the hub cannot be reached'), (errors.GatedRepoError('x', response=Response()), 'is gated: accept its terms'),
    (errors.RevisionNotFoundError('x', response=Response()), "has no revision 'v9'"), (ValueError("Config name is missing.\nPlease pick one among: ['en', 'de']"), "several configurations; say which under `data: {name: …}`: 'en', 'de'"),
    (RuntimeError('Dataset scripts are no longer supported'), 'is a script, which is not run'), (KeyError('x'), 'that can be read (KeyError)')])
def test_the_hub_refuses(error, said, monkeypatch):
    def refuse(*a, **kw): raise error
    monkeypatch.setattr('datasets.load_dataset', refuse)
    with pytest.raises(QLoRAError) as e: inspect('org/rows', {}, revision='v9')
    assert said in line(e) and line(e).startswith('org/rows')

def test_the_hub_is_asked_for_configuration_and_revision(monkeypatch):
    from datasets import DatasetDict
    asked = []
    def answer(*a, **kw):
        asked.append((a, kw))
        return DatasetDict(train=sets(), validation=sets())
    monkeypatch.setattr('datasets.load_dataset', answer)
    assert inspect('org/rows', {}, name='en', revision='v2').splits==dict(train=5, validation=5) and asked==[(('org/rows', 'en'), dict(revision='v2'))]
    assert [p.name for p in hub_parts('org/rows')]==['org/rows train', 'org/rows validation']

def test_a_hub_set_without_a_network():
    with pytest.raises(QLoRAError, match='nobody/rows is no file and no variable here, and the hub cannot be reached'): inspect('nobody/rows', {})

# ---- doubt, templates

def test_what_could_be_two_forms_says_so():
    seen = inspect([dict(question='q', answer='a', source='s', target='t')])
    assert seen.notes==['taken for question_answer: question → answer, but the columns would also fit source → target. To choose, set data.prompt and data.completion']

def test_an_unknown_form_says_what_to_write():
    seen = inspect([dict(alpha='1', beta='2')])
    assert seen.form=='unknown' and 'the columns alpha, beta have no known form. Set data.prompt and data.completion to say which text is the prompt' in str(seen)
    assert inspect([dict(alpha='1', beta='2')], prompt='{alpha}+{beta}', completion='beta').messages[0][0]['content']=='1+2'

@pytest.mark.parametrize('spec,said', [('{qestion}', "no column 'qestion' for {qestion}; the columns are question, answer. Did you mean 'question'?"),
    ('qestion', "no column 'qestion'; the columns are question, answer. Did you mean 'question'?"), ('{question', 'A brace that is meant as such is doubled'),
    ('{question.__class__}', "no column 'question.__class__'"), ('{}', "no column ''")])
def test_a_template_that_names_no_column(spec, said):
    with pytest.raises(QLoRAError) as e: inspect([dict(question='x', answer='y')], prompt=spec, completion='answer')
    assert said in line(e) and line(e).startswith('data.prompt: ')

def test_values_are_never_taken_for_templates():
    seen = inspect([dict(a='{b} {0} {{', b='x')], prompt='say {a} {{now}}', completion='b')
    assert seen.messages[0][0]['content']=='say {b} {0} {{ {now}'

def test_columns_and_spellings():
    for row,name in [(dict(Prompt='a', Response='b'), 'prompt_completion'), (dict(document='a', summary='b'), 'dialogue_summary'), (dict(article='a', highlights='b', id='c'), 'dialogue_summary'),
        (dict(instruction='a', response='b'), 'alpaca'), (dict(input='a', output='b'), 'source_target'), (dict(sentence='a', sentiment='b'), 'text_label'), (dict(content='a'), 'text'), (dict(x='a'), 'unknown')]:
        assert detect([row]).name==name

# ---- splits and mixtures

def many(n, **more): return [dict(prompt=f'p{i}', completion=f'c{i}', **{k: f(i) for k,f in more.items()}) for i in range(n)]
def taken(rs, **kw): return read([parts('v', dict(v=rs))], **kw)
def prompts(rows): return [m[0]['content'] for m in rows.messages]

def test_a_split_is_the_same_every_time_and_loses_nothing():
    a,b = (split_off(taken(many(40)), .25, seed=3) for _ in range(2))
    assert prompts(a[0])==prompts(b[0]) and prompts(a[1])==prompts(b[1]) and sorted(prompts(a[0])+prompts(a[1]))==sorted(prompts(taken(many(40))))
    assert len(a[1].dataset)==10 and prompts(split_off(taken(many(40)), .25, seed=4)[1])!=prompts(a[1]) and len(split_off(taken(many(40)), 7)[1].dataset)==7

def test_what_could_not_be_read_is_told_once():
    train,held = split_off(taken([*many(9), 7]), 3)
    assert (train.unreadable, held.unreadable, held.problems)==(1, 0, []) and train.rows+held.rows==9

def test_groups_stay_together():
    rows = taken(many(60, who=lambda i: i%7), group='who')
    train,held = split_off(rows, .3, group=True)
    assert {int(p[1:])%7 for p in prompts(train)}.isdisjoint({int(p[1:])%7 for p in prompts(held)}) and 18<=len(held.dataset)<=27
    with pytest.raises(QLoRAError, match="v has no column 'whom'; the columns are prompt, completion, who.*'who'"): taken(many(6, who=str), group='whom')
    with pytest.raises(QLoRAError, match='there are too few groups'): split_off(taken(many(6, who=lambda i: 1), group='who'), 2, group=True)

@pytest.mark.parametrize('n,size,said', [(1, .5, 'v has 1 row, too few'), (4, 4, '4 of 4 rows would be held out, and none would be left')])
def test_splits_that_cannot_be(n, size, said):
    with pytest.raises(QLoRAError, match=said): split_off(taken(many(n), called='v'), size)

def test_a_mixture_by_weight_repeats_nothing():
    rows = read([parts('a', dict(a=many(100))), parts('b', dict(b=[dict(prompt=f'b{i}', completion='x') for i in range(30)]))])
    m = mix(rows, (2, 1), ['a', 'b'])
    got = prompts(m)
    assert sum(p[0]=='b' for p in got)==30 and sum(p[0]=='p' for p in got)==60 and len(set(got))==90 and m.notes==['mixed by weight: a 60 of 100 rows, b 30 of 30 rows']
    with pytest.raises(QLoRAError, match='2 sources and 3 weights'): mix(rows, (1, 1, 1), ['a', 'b'])

BIG = '''
import json, resource, sys
from qlora_nb.data.rows import inspect
inspect('small.jsonl', {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = inspect('large.jsonl', {}).rows
print(json.dumps([n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)*1024]))'''

def test_a_large_file_is_not_held_in_memory(folder):
    row = json.dumps(dict(prompt='p'*700, completion='c'*300))+'\n'
    (folder/'small.jsonl').write_text(row*1000)
    with (folder/'large.jsonl').open('w') as f:
        for _ in range(60): f.write(row*1000)
    out = subprocess.run([sys.executable, '-c', BIG], capture_output=True, text=True, check=True).stdout
    n,grown = json.loads(out)
    assert n==60_000 and grown<.35*(folder/'large.jsonl').stat().st_size

# ---- the config cell

CELL = '''
import sys
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell()
ip.run_line_magic('load_ext', 'qlora_nb')
ip.user_ns['rows'] = [dict(question='Why?', answer='So')]
ip.run_cell(sys.argv[1])
print('torch' in sys.modules, 'datasets' in sys.modules)'''

def cell(text): return subprocess.run([sys.executable, '-c', CELL, text], capture_output=True, text=True, check=True).stdout

def test_the_config_cell_shows_the_first_row_and_imports_nothing_heavy(folder):
    said = cell('%%qlora_config\nmodel: demo\ndata: {train: rows}')
    assert "rows: question_answer, question answering; 'Why?' → 'So'" in said and said.splitlines()[-1]=='False False'

@pytest.mark.parametrize('data,line', [('{train: rows, prompt: "{qestion}", completion: answer}', "line 3, data.prompt: no column 'qestion' for {qestion}; the columns are question, answer. Did you mean 'question'?"),
    ('{train: rows, split: test}', "line 3, data.split: no split 'test'; there are train."), ('{train: broken.csv}', "line 3, data.train: broken.csv, line 1: two columns are called 'a'"),
    ('{train: strange.csv}', 'data.prompt: the columns alpha, beta have no known form. Set data.prompt and data.completion to say which text is the prompt and which the answer')])
def test_the_config_cell_refuses_what_cannot_be_read(data, line, folder):
    (folder/'broken.csv').write_text('a,a\n1,2\n')
    (folder/'strange.csv').write_text('alpha,beta\n1,2\n')
    assert f'QLoRAError: {line}' in cell(f'%%qlora_config\nmodel: demo\ndata: {data}')
