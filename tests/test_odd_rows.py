"Rows as people and other tools have them: trained as they say, or counted and named, or refused in one line with the way out"
import json, sys
import pytest, tiny
from corpus import frame, jsonl, said
from qlora_nb import parse
from qlora_nb.data.messages import Asked
from qlora_nb.data.rows import inspect, peek, read
from qlora_nb.data.sources import parts
from qlora_nb.data.splits import split_off
from qlora_nb.data.turns import tools_of
from qlora_nb.errors import QLoRAError
from qlora_nb.tokens import batching
from qlora_nb.tokens.gate import prepare

@pytest.fixture(autouse=True)
def folder(empty): return empty

def rows(rs, **kw): return inspect(rs, **kw)
def texts(seen): return [[m['content'] for m in ms] for ms in seen.messages]
def line(e): # the one line of an error
    assert len(str(e.value).splitlines())==1 and len(str(e.value))<900
    return str(e.value)

def refused(source, **kw):
    with pytest.raises(QLoRAError) as e: read([parts(source if isinstance(source, str) else 'rows', dict(rows=source))], 'rows', **kw)
    return line(e)

def cell(train='rows', **data):
    keys = ''.join(f'  {k}: {json.dumps(v)}\n' for k,v in (dict(train=train)|data).items())
    return parse(f'model: demo\ndata:\n{keys}training: {{max_length: 200}}')

def prepared(rs=None, **data): return prepare(cell(**data), tiny.tokenizer(), dict(rows=rs))

# ---- messages and what stands beside them

HI = [dict(role='user', content='Hi'), dict(role='assistant', content='Yo')]
CALL = dict(type='function', function=dict(name='weather', arguments=dict(town='Bern')))

@pytest.mark.parametrize('key,value', [('weight', 0), ('loss_weight', 0.0), ('loss', False), ('train', False), ('training', 'false'), ('weight', '0')])
def test_a_message_that_says_so_is_not_trained(key, value):
    seen = rows([dict(messages=[HI[0], HI[1] | {key: value}, *HI])])
    assert seen.messages[0]==[HI[0], dict(role='assistant', content='Yo', train=False), *HI]
    assert seen.notes==['messages not trained because of their weight, loss or train key: 1 (first: rows, row 1)']

def test_rows_that_are_marked_as_not_to_be_trained_are_not_lost_ones():
    made = [dict(messages=[HI[0], HI[1] | dict(weight=i%2)]) for i in range(10)]
    data = prepared(made)
    assert len(data.train)==5 and [(k, f.rows) for k,f in data.train.findings.items()]==[('marked', 5), ('duplicate', 4)]

def test_a_weight_between_is_named():
    seen = rows([dict(messages=[HI[0], HI[1] | dict(weight=.5)])])
    assert seen.messages[0]==HI and seen.notes==['messages whose weight is neither 0 nor 1, which is not used: 1 (first: rows, row 1)']

def test_keys_of_messages_that_are_not_used_are_named_once():
    seen = rows([dict(messages=[o | dict(id=7, created='now', seen=None) for o in HI])]*3)
    assert seen.messages[2]==HI and seen.notes==['keys of messages that are not used: id, created']

def test_tools_and_their_calls_stay_with_the_messages():
    given = dict(id='c1', type='function', function=dict(name='weather', arguments='{"town": "Bern"}'))
    talk = [HI[0], dict(role='assistant', content=None, tool_calls=[given]), dict(role='tool', tool_call_id='c1', name='weather', content='9 °C'),
        dict(role='assistant', content='Nine.', reasoning_content='Read it off.')]
    seen = rows([dict(messages=talk, tools=[dict(name='weather')])])
    assert seen.messages[0]==[HI[0] | dict(tools=[dict(name='weather')]), dict(role='assistant', content=None, tool_calls=[dict(id='c1', **CALL)]), talk[2], talk[3]]
    assert tools_of(seen.messages[0])==[dict(name='weather')] and seen.notes==[]

def test_tool_calls_beside_text_stay():
    seen = rows([dict(messages=[HI[0], dict(role='assistant', content='I look it up.', tool_calls=[CALL])])])
    assert seen.messages[0][1]==dict(role='assistant', content='I look it up.', tool_calls=[CALL])

def test_tool_roles_of_sharegpt():
    talk = [{'from': 'human', 'value': 'Hi'}, {'from': 'function_call', 'value': '{"name": "weather", "arguments": {"town": "Bern"}}'},
        {'from': 'observation', 'value': '9 °C'}, {'from': 'gpt', 'value': 'Nine.'}]
    seen = rows([dict(conversations=talk, system='Be brief', tools='[{"name": "weather"}]')])
    assert seen.messages[0]==[dict(role='system', content='Be brief', tools=[dict(name='weather')]), HI[0], dict(role='assistant', content=None, tool_calls=[CALL]),
        dict(role='tool', content='9 °C'), dict(role='assistant', content='Nine.')]

@pytest.mark.parametrize('value,why', [('call it', "a tool call is no JSON: 'call it'"), ('{"arguments": {}}', "a tool call has no 'name'; it has arguments"), ('7', 'expected a tool call, got a number')])
def test_a_tool_call_that_is_none(value, why):
    seen = read([parts('rows', dict(rows=[dict(messages=HI), dict(messages=[HI[0], dict(role='function_call', content=value)])]))])
    assert (seen.rows, seen.unreadable)==(1, 1) and str(seen.problems[0])==f'rows, row 2, column messages: {why}'

@pytest.mark.parametrize('part', [dict(type='text', value='Hi'), dict(type='text', text='Hi'), dict(type='input_text', text='Hi'), dict(text='Hi'), 'Hi'])
def test_parts_of_text(part): assert rows([dict(messages=[dict(role='user', content=[part]), HI[1]])]).messages[0]==HI

def test_a_part_without_text_says_what_it_has():
    seen = read([parts('rows', dict(rows=[dict(messages=HI), dict(messages=[dict(role='user', content=[dict(type='text', body='x')]), HI[1]])]))])
    assert str(seen.problems[0])=="rows, row 2, column messages: a text part has no 'text'; it has type, body"

# ---- columns beside the pair

def test_a_system_column_is_used():
    seen = rows([dict(id='1', system_prompt='Answer as a pirate.', question='Where?', response='Arr.')]*2)
    assert seen.messages[1]==said(('system', 'Answer as a pirate.'), ('user', 'Where?'), ('assistant', 'Arr.')) and seen.notes==['columns that are not used: id']

def test_the_rows_own_system_message_comes_before_that_of_the_config():
    rs = [dict(messages=HI, system='Own'), dict(messages=HI, system=''), dict(messages=[dict(role='system', content='First'), *HI], system='Own')]
    seen = read([parts('rows', dict(rows=rs))], asked=Asked(system='Config'))
    assert [ms[0]['content'] for ms in seen.messages]==['Own', 'Config', 'First']

@pytest.mark.parametrize('spec,text', [('who', 'Bo'), ('You are {who}', 'You are Bo'), ('Be kind', 'Be kind')])
def test_data_system_may_be_a_column(spec, text):
    seen = read([parts('rows', dict(rows=[dict(prompt='Hi', completion='Yo', who='Bo')]))], asked=Asked(system=spec))
    assert seen.messages[0][0]==dict(role='system', content=text)

def test_data_system_that_names_no_column():
    assert refused([dict(prompt='Hi', completion='Yo', who='Bo')], asked=Asked(system='You are {whom}'))==\
        "data.system: no column 'whom' for {whom}; the columns are prompt, completion, who. Did you mean 'who'?"

def test_earlier_turns_of_a_history_column_are_trained_as_llama_factory_does():
    seen = rows([dict(instruction='And the cat?', input='', output='Out.', history=[['Where is the key?', 'Under the mat.']])]*2)
    assert texts(seen)[1]==['Where is the key?', 'Under the mat.', 'And the cat?', 'Out.'] and seen.notes==[] and not any('train' in m for m in seen.messages[0])

def test_a_history_that_is_none():
    seen = read([parts('rows', dict(rows=[dict(instruction='a', output='b', history=[]), dict(instruction='a', output='b', history='[["x", "y"]]'), dict(instruction='a', output='b', history=['x'])]))])
    assert texts(seen)==[['a', 'b'], ['x', 'y', 'a', 'b']] and str(seen.problems[0])=='rows, row 3, column history: expected a list of pairs of texts, got a list'

@pytest.mark.parametrize('column', ['images', 'image', 'audios', 'videos'])
def test_pictures_and_sound_stop_the_run(column):
    rs = [dict(messages=HI), dict(messages=HI) | {column: ['a.png']}]
    assert refused(rs)==f"data.train: the column '{column}' holds pictures or sound, and only text can be trained on. Leave it out, or set data.prompt and data.completion"
    assert read([parts('rows', dict(rows=[dict(messages=HI) | {column: []}]))]).rows==1

def test_an_unused_column_is_named_once_however_many_rows():
    seen = rows([dict(prompt='a', completion='b', source='C4', score=1)]*5)
    assert seen.notes==['columns that are not used: source, score']
    assert rows([dict(prompt='a', completion='b') | {f'c{i}': 1 for i in range(5000)}]).notes==[f'columns that are not used: {", ".join(f"c{i}" for i in range(12))} and 4,988 more']

def test_pairs_of_columns_belong_together():
    assert texts(rows([dict(input='a', output='b', source='C4')]))==[['a', 'b']]
    assert texts(rows([dict(source='a', target='b', input='x', output='y')]))==[['a', 'b']]

@pytest.mark.parametrize('row,prompt', [(dict(instruction='', input='Sum 1 2', output='3'), 'Sum 1 2'), (dict(instruction='Add', input=' ', output='3'), 'Add'),
    (dict(instruction='Add', input='1 2', output='3'), 'Add\n\n1 2'), (dict(question='', context='c', answer='x'), 'c'), (dict(question='q', context='c', answer='x'), 'c\n\nq')])
def test_two_columns_are_joined_where_both_have_text(row, prompt): assert texts(rows([row]))[0][0]==prompt

def test_an_empty_prompt_with_an_answer_is_said():
    seen = rows([dict(messages=[dict(role='user', content=None), HI[1]]), dict(messages=[dict(role='user', content=''), HI[1]]), dict(messages=HI)])
    assert seen.notes==['rows trained with an empty prompt: 2 (first: rows, row 1)'] and seen.rows==3

# ---- answers

def test_an_answer_that_is_a_list():
    assert texts(rows([dict(question='q', answer=['a'])]))==[['q', 'a']]
    assert refused_rows([dict(question='q', answer=['a', 'b'])])=='rows, row 1, column answer: expected one text, got a list of 2: to take the first, set data.prompt, and {answer.0} as data.completion'
    assert texts(rows([dict(question='q', answer=['a', 'b'])], prompt='question', completion='{answer.0}'))==[['q', 'a']]

def refused_rows(rs): return str(read([parts('rows', dict(rows=rs))]).problems[0])

def test_several_answers_of_squad_are_named():
    seen = rows([dict(context='c', question='q', answers=dict(text=['a', 'b'], answer_start=[0, 1]))])
    assert texts(seen)==[['c\n\nq', 'a']] and seen.notes==['rows with several answers, of which the first is taken: 1 (first: rows, row 1)']

def test_whole_numbers_of_a_frame_stay_whole():
    seen = rows(frame([dict(question='a', answer=1), dict(question='b', answer=2), dict(question='c', answer=None)]))
    assert texts(seen)==[['a', '1'], ['b', '2'], ['c', '']]
    assert texts(rows(frame([dict(question='a', answer=1.5), dict(question='b', answer=None)])))[0]==['a', '1.5']

def test_two_columns_of_one_name_in_a_frame_or_a_table(folder):
    import pyarrow as pa, pyarrow.parquet as pq
    two = frame([dict(a='x', b='y')]).set_axis(['a', 'a'], axis=1)
    assert refused(two)=="rows: two columns are called 'a'"
    pq.write_table(pa.Table.from_arrays([pa.array(['x']), pa.array(['y'])], names=['a', 'a']), folder/'t.parquet')
    assert refused('t.parquet')=="t.parquet: two columns are called 'a'"

def test_arrays_in_the_cells_of_a_frame():
    import numpy as np
    assert texts(rows(frame([dict(messages=np.array(HI, dtype=object))])))==[['Hi', 'Yo']]

# ---- preference and KTO

PROMPT = [dict(role='user', content='Q1'), dict(role='assistant', content='A1'), dict(role='user', content='Q2')]
GIVEN = [('user', 'Q1', None), ('assistant', 'A1', False), ('user', 'Q2', None), ('assistant', 'good', None)]
GOOD,BAD = [dict(role='assistant', content='good')],[dict(role='assistant', content='bad')]
PREFERENCE = dict(plain=(dict(prompt='Q', chosen='good', rejected='bad'), [('user', 'Q', None), ('assistant', 'good', None)]),
    alpaca=(dict(instruction='Do', input='it', chosen='good', rejected='bad'), [('user', 'Do\n\nit', None), ('assistant', 'good', None)]),
    lists=(dict(prompt=PROMPT, chosen=GOOD, rejected=BAD), GIVEN), implicit=(dict(chosen=[*PROMPT, *GOOD], rejected=[*PROMPT, *BAD]), GIVEN),
    repeated=(dict(prompt='Q2', chosen=[*PROMPT, *GOOD], rejected=[*PROMPT, *BAD]), GIVEN),
    sharegpt=(dict(conversations=[{'from': 'human', 'value': 'Q1'}, {'from': 'gpt', 'value': 'A1'}, {'from': 'human', 'value': 'Q2'}],
        chosen={'from': 'gpt', 'value': 'good'}, rejected={'from': 'gpt', 'value': 'bad'}), GIVEN),
    history=(dict(prompt='Q2', history=[['Q1', 'A1']], chosen='good', rejected='bad'), GIVEN),
    hh=(dict(chosen='\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant: good', rejected='\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant: bad'), GIVEN))

@pytest.mark.parametrize('name', PREFERENCE)
def test_preference_rows_are_trained_on_the_chosen_answer_alone(name):
    row,wanted = PREFERENCE[name]
    seen = rows([row]*2)
    assert seen.form=='preference' and [(m['role'], m['content'], m.get('train')) for m in seen.messages[1]]==wanted
    assert 'preference: trained on chosen; the rejected side is not used' in seen.notes

def test_a_preference_row_without_a_prompt():
    assert refused_rows([dict(chosen='good', rejected='bad')])=='rows, row 1, column chosen: the answer has no prompt: neither a column nor the conversation holds one'

@pytest.mark.parametrize('rs', [[dict(prompt=f'p{i}', completion=f'c{i}', label=i%2==0) for i in range(6)], [dict(messages=HI, kto_tag=i%2==0) for i in range(6)],
    [dict(prompt=f'p{i}', completion=f'c{i}', label=str(i%2==0)) for i in range(6)]])
def test_answers_marked_as_bad_are_left_out_and_counted(rs):
    seen = rows(rs)
    assert (seen.rows, seen.left_out, seen.unreadable)==(3, 3, 0) and seen.notes==['rows left out because their answer is marked as a bad one: 3 (first: rows, row 2)']
    d = prepared(rs)
    assert (len(d.train), d.train.rows)==(3, 6)

def test_all_answers_marked_as_bad():
    with pytest.raises(QLoRAError) as e: rows([dict(prompt='p', completion='c', label=False)]*2)
    assert line(e)=='rows has no row to train on: 2 are marked as bad answers'

def test_a_label_that_is_a_class_is_no_mark(): assert rows([dict(prompt='p', completion='c', label=0)]).notes==['columns that are not used: label']

# ---- forms, and rows that are lost

PAIRS = [dict(prompt=f'question {i}', completion=f'answer {i}') for i in range(50)]

def test_one_odd_row_throws_no_other_away():
    d = prepared([*PAIRS[:25], dict(messages=HI), *PAIRS[25:]])
    assert len(d.train)==51 and 'train: rows of several forms: prompt_completion 50, messages 1' in d.notes and d.train.messages[25]==HI

def test_a_form_that_changes_after_a_hundred_rows():
    seen = rows([*PAIRS*3, *[dict(question='q', answer='a')]*50, dict(text='Once')])
    assert (seen.rows, seen.unreadable)==(201, 0) and 'rows of several forms: prompt_completion 150, question_answer 50, text 1' in seen.notes

def test_a_row_without_the_columns_says_what_it_has():
    seen = read([parts('rows', dict(rows=[*PAIRS, dict(foo=1, bar=2)]))])
    assert str(seen.problems[0])=='rows, row 51: expected the columns prompt, completion; the row has foo, bar'

def test_empty_cells_of_a_table_of_two_forms():
    union = [dict(prompt='a', completion='b', messages=None)]*3+[dict(prompt=None, completion=None, messages=HI)]
    assert texts(rows(union))==[['a', 'b']]*3+[['Hi', 'Yo']]

def test_a_fifth_of_the_rows_may_be_lost_and_no_more(folder):
    bad = [7]*12
    assert len(prepared([*PAIRS, *bad]).train)==50
    with pytest.raises(QLoRAError) as e: prepared([*PAIRS, *bad, 7])
    *_,side = sorted((folder/'.cache'/'rows').glob('*/train.unreadable.jsonl'))
    assert line(e)==('data.train: 13 of 63 rows are lost (21%), and data.max_lost is 20%: 13 rows that cannot be read: left out (first: rows, row 51: expected an object such as '
        '{"prompt": …, "completion": …}, got a number: all are in '
        f'{side}). To go on without them, set data.max_lost to 0.21')
    assert len(prepared([*PAIRS, *bad, 7], max_lost=.21).train)==50

def test_causes_are_added_up_and_named():
    mixed = [*PAIRS[:7], 7, dict(prompt='a', completion=''), dict(prompt='w'*300, completion='x')]
    with pytest.raises(QLoRAError) as e: prepared(mixed)
    assert '3 of 10 rows are lost (30%)' in line(e) and all(o in line(e) for o in ('1 row that cannot be read', '1 row without an answer', '1 row whose prompt alone fills max_length'))

def test_rows_that_are_one_message_each(folder):
    (folder/'m.jsonl').write_bytes(jsonl(HI))
    assert refused('m.jsonl')=='data.prompt: each row is one message: put the messages of a conversation into one row, as a list'

def test_a_set_of_columns_without_end_is_refused_in_a_short_line(folder):
    assert len(refused([{f'column {i}': 'x' for i in range(3000)}]))<700
    (folder/'w.csv').write_text(','.join(f'c{i}' for i in range(3000))+'\n'+'x\n'*3)
    assert len(refused_rows_of('w.csv'))<500

def refused_rows_of(name):
    with pytest.raises(QLoRAError) as e: inspect(name, {})
    return line(e)

# ---- nested rows

NESTED = [dict(instruction='Add', instances=[dict(input='1 2', output='3')]), dict(instruction='Twice', instances=[dict(input='2', output='4'), dict(input='3', output='6')])]

def test_a_path_names_what_lies_deeper():
    seen = rows(NESTED, prompt='{instruction}: {instances.input}', completion='{instances.output}')
    assert texts(seen)==[['Add: 1 2', '3'], ['Twice: 2', '4'], ['Twice: 3', '6']] and seen.notes==[] and seen.at(2)=='rows, row 2'
    assert texts(rows(NESTED, prompt='{instances[0].input}', completion='instances.0.output'))==[['1 2', '3'], ['2', '4']]

def test_an_unknown_form_names_nested_texts(): assert 'nested texts are {instances.input}, {instances.output}' in refused(NESTED)

def test_a_path_that_leads_nowhere():
    assert refused(NESTED, asked=Asked('{instances.inptu}', '{instances.output}'))==\
        "data.prompt: no column 'instances.inptu' for {instances.inptu}; the columns are instruction, instances. Did you mean 'instances.input'?"

def test_squad_as_its_authors_wrote_it(folder):
    qas = [dict(id='1', question='Who?', answers=[dict(text='Puffins', answer_start=0)]), dict(id='2', question='Where?', answers=[])]
    (folder/'squad.json').write_text(json.dumps(dict(version='1.1', data=[dict(title='Birds', paragraphs=[dict(context='Puffins nest.', qas=qas)])])))
    seen = inspect('squad.json', {}, prompt='{paragraphs.context} {paragraphs.qas.question}', completion='{paragraphs.qas.answers.text}')
    assert texts(seen)==[['Puffins nest. Who?', 'Puffins'], ['Puffins nest. Where?', '']]
    assert seen.notes==['squad.json: rows are read from data; not used: version', 'columns that are not used: title']

# ---- splits

def test_more_rows_held_out_than_there_are():
    with pytest.raises(QLoRAError) as e: split_off(read([parts('rows', dict(rows=PAIRS[:5]))]), .9)
    assert line(e)=='data.validation_size: 0.9 of 5 rows would be held out, and none would be left'

def test_validation_rows_may_have_columns_of_their_own():
    space = dict(rows=[dict(dialogue='d', summary='s')]*5, held=[dict(dialogue='d2', summary1='s1', summary2='s2')]*5)
    with pytest.raises(QLoRAError) as e: prepare(cell(validation='held'), tiny.tokenizer(), space)
    assert 'the columns dialogue, summary1, summary2 have no known form' in line(e)
    d = prepare(cell(validation='held', validation_prompt='dialogue', validation_completion='summary1'), tiny.tokenizer(), space)
    assert d.validation.messages[0]==said(('user', 'Summarize the following text.\n\nd2'), ('assistant', 's1')) and 'validation: columns that are not used: summary2' in d.notes

def test_validation_columns_begin_as_the_prompts_of_training_do():
    space = dict(rows=[dict(dialogue='d', summary='s')]*5, held=[dict(talk='d2', short='s1')]*5)
    def asked(column, **more): return prepare(cell(validation='held', validation_prompt=column, validation_completion='short', **more), tiny.tokenizer(), space)
    for prompt in ('talk', '{talk}'):
        d = asked(prompt)
        assert [d.train.messages[0][0]['content'], d.validation.messages[0][0]['content']]==['Summarize the following text.\n\nd', 'Summarize the following text.\n\nd2']
    assert d.validation.form.startswith('your own template') and not any(o.startswith('validation: dialogue_summary') for o in d.notes)
    assert asked('Shorten: {talk}').validation.messages[0][0]['content']=='Shorten: d2'
    assert asked('talk', prompt='{dialogue}', completion='summary').validation.messages[0][0]['content']=='d2'

@pytest.mark.parametrize('held,data,said', [
    (dict(a='x', b='y'), {}, 'data.validation_prompt: the columns a, b have no known form. Set data.validation_prompt and data.validation_completion to say which text is the prompt and which the answer'),
    (dict(a='x', b='y'), dict(prompt='prompt', completion='completion'), "data.validation_prompt: no column 'prompt'; the columns are a, b."),
    (dict(a='x', b='y'), dict(validation_prompt='a', validation_completion='bb'), "data.validation_completion: no column 'bb'; the columns are a, b. Did you mean 'b'?"),
    (dict(messages=HI, images=['a.png']), {}, "data.validation: the column 'images' holds pictures or sound, and only text can be trained on. "
        'Leave it out, or set data.validation_prompt and data.validation_completion')])
def test_a_refusal_of_validation_rows_names_their_keys(held, data, said):
    with pytest.raises(QLoRAError) as e: prepare(cell(validation='held', **data), tiny.tokenizer(), dict(rows=PAIRS, held=[held]*5))
    assert line(e)==said

# ---- packages that are not there

@pytest.mark.parametrize('package,source', [('datasets', 'rows'), ('datasets', 'org/rows'), ('pyarrow', 'rows')])
def test_a_package_that_is_not_there(package, source, monkeypatch):
    for name in [o for o in sys.modules if o.split('.')[0]==package]: monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(QLoRAError) as e: read([parts(source, dict(rows=PAIRS))])
    assert f'needs the package {package}, which is not installed here: run `%pip install {package}`, then restart the kernel' in line(e)

def test_a_model_of_the_hub_without_its_package(monkeypatch):
    from qlora_nb.facts.models import find
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(QLoRAError) as e: find('org/unknown-model', offline=True)
    assert line(e)=='org/unknown-model needs the package huggingface_hub, which is not installed here: run `%pip install huggingface_hub`, then restart the kernel'

# ---- files

P = {'prompt': 'a', 'completion': 'b'}
PQ = [dict(prompt=f'p{i}', completion=f'c{i}') for i in range(3)]
def js(o, **kw): return json.dumps(o, **kw).encode()
G = jsonl(PQ)
CN = '问题,答案\n你好吗？,我很好，谢谢。\n你是谁？,我是一个人。\n'

TRAINED = { # file → (content, rows, the first as texts): read whole, without a word
    'array.jsonl': (js(PQ), 3, ['p0', 'c0']), 'array_lines.jsonl': (b'[\n'+b',\n'.join(map(js, PQ))+b'\n]\n', 3, ['p0', 'c0']),
    'array_pretty.jsonl': (js(PQ, indent=2), 3, ['p0', 'c0']), 'pretty.jsonl': (b'\n'.join(js(o, indent=2) for o in PQ), 3, ['p0', 'c0']),
    'pretty.json': (b'\n'.join(js(o, indent=2) for o in PQ), 3, ['p0', 'c0']), 'pretty_commas.jsonl': (b',\n'.join(js(o, indent=2) for o in PQ), 3, ['p0', 'c0']),
    'one_line.json': (b' '.join(map(js, PQ)), 3, ['p0', 'c0']), 'talk_lines.jsonl': (jsonl([HI, HI]), 2, ['Hi', 'Yo']), 'one_talk_line.jsonl': (jsonl([HI]), 1, ['Hi', 'Yo']),
    'talk.json': (js(HI), 1, ['Hi', 'Yo']), 'talk_pretty.json': (js(HI, indent=1), 1, ['Hi', 'Yo']), 'talks.json': (js([HI, HI]), 2, ['Hi', 'Yo']),
    'talk_sharegpt.json': (js([{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yo'}]), 1, ['Hi', 'Yo']), 'messages.json': (js(dict(messages=HI)), 1, ['Hi', 'Yo']),
    'conversations.json': (js(dict(conversations=[{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yo'}])), 1, ['Hi', 'Yo']),
    'wrapped_talks.json': (js(dict(data=[dict(messages=HI)]*2)), 2, ['Hi', 'Yo']), 'wrapped_lists.json': (js(dict(samples=[HI, HI])), 2, ['Hi', 'Yo']),
    'by_id.json': (js({'a17': PQ[0], 'b2': PQ[1]}), 2, ['p0', 'c0']), 'by_number.json': (js({'0': PQ[0], '1': PQ[1], '2': PQ[2]}), 3, ['p0', 'c0']),
    'samples.json': (js(dict(samples=PQ)), 3, ['p0', 'c0']), 'deep.json': (js(dict(result=dict(items=PQ))), 3, ['p0', 'c0']), 'row.json': (js(P), 1, ['a', 'b']),
    'row_pretty.json': (js(P, indent=1), 1, ['a', 'b']), 'val_dev.json': (js(dict(val=PQ[:2], dev=PQ[2:])), 3, ['p0', 'c0']), 'split_by_id.json': (js(dict(train={'x': PQ[0], 'y': PQ[1]})), 2, ['p0', 'c0']),
    'firefly.jsonl': (jsonl([dict(conversation=[dict(human='Hi', assistant='Yo'), dict(human='Bye', assistant='Ciao')])]), 1, ['Hi', 'Yo', 'Bye', 'Ciao']),
    'xtuner.json': (js([dict(conversation=[dict(system='S', input='Hi', output='Yo')])]), 1, ['S', 'Hi', 'Yo']), 'human_assistant.jsonl': (jsonl([dict(human='Hi', assistant='Yo')]), 1, ['Hi', 'Yo']),
    'json_text.csv': (b'messages\n"[{""role"": ""user"", ""content"": ""Hi""}, {""role"": ""assistant"", ""content"": ""Yo""}]"\n', 1, ['Hi', 'Yo']),
    'sep.csv': (b'sep=;\nprompt;completion\na;b, c\n', 1, ['a', 'b, c']), 'sep_quoted.csv': (b'"sep=|"\nprompt|completion\na|b;c\n', 1, ['a', 'b;c']), 'sep_bom.csv': (b'\xef\xbb\xbfsep=;\r\nprompt;completion\r\na;b\r\n', 1, ['a', 'b']),
    'blank_first.csv': (b'\nprompt,completion\na,b\n', 1, ['a', 'b']), 'blank_many.csv': (b'\n \r\n\nprompt,completion\n\na,b\n\n', 1, ['a', 'b']), 'blank_first.tsv': (b'\nprompt\tcompletion\na\tb\n', 1, ['a', 'b']),
    'bars.csv': (b'prompt|completion\na,b|c;d\n', 1, ['a,b', 'c;d']), 'rows.jsonl.txt': (G, 3, ['p0', 'c0']), 'rows.csv.txt': (b'prompt,completion\na,b\n', 1, ['a', 'b']), 'rows.json.txt': (js(PQ), 3, ['p0', 'c0']),
    'upper.JSONL': (G, 3, ['p0', 'c0']), 'spaces.jsonl': (b'  '+js(P)+b'  \n\t\n', 1, ['a', 'b']), 'cr.jsonl': (G.replace(b'\n', b'\r\n'), 3, ['p0', 'c0']), 'separators.jsonl': ('{"prompt": "a\u2028b", "completion": "c\u0085d"}\n'.encode(), 1, ['a\u2028b', 'c\u0085d']),
    'system.json': (js([dict(messages=HI, system='S')]), 1, ['S', 'Hi', 'Yo'])}

@pytest.mark.parametrize('name', TRAINED)
def test_files_that_are_read_whole(name, folder):
    content,n,first = TRAINED[name]
    (folder/name).write_bytes(content)
    seen = inspect(name, {})
    assert (seen.rows, seen.unreadable, texts(seen)[0], seen.notes)==(n, 0, first, []) and ' '.join(first[-1].split()) in str(peek([name], {}))

AS_1252 = "{} is not UTF-8 and was read as Windows-1252 (for example {}). If letters are wrong, save it as UTF-8"
NOTED = { # file → (content, rows, the last row's last text, the notes)
    'western.csv': ('prompt,completion\nWo ist der Schlüssel?,Hier\nx,„ja“\n'.encode('cp1252'), 2, '„ja“', [AS_1252.format('western.csv', "'Schlüssel?,Hier'")]),
    'western.jsonl': (G+'{"prompt": "Où?", "completion": "Là"}\n'.encode('cp1252'), 4, 'Là', [AS_1252.format('western.jsonl', "'Où?'")]),
    'western.txt': ('eins\nzwölf\n'.encode('latin-1'), 2, 'zwölf', ['western.txt: each line is a row. For paragraphs or the whole file, set data.sample_by', AS_1252.format('western.txt', "'zwölf'")]),
    'chinese.csv': (CN.replace('问题,答案', 'question,answer').encode('gbk'), 2, '我是一个人。', ["chinese.csv is not UTF-8 and was read as GBK (for example '你好吗？,我很好，谢谢。'). If letters are wrong, save it as UTF-8"]),
    'chinese.json': (json.dumps([dict(question='你好吗？', answer='我很好')], ensure_ascii=False).encode('gbk'), 1, '我很好', None),
    'index.csv': (b',prompt,completion\n0,a,b\n1,c,d\n', 2, 'd', ['index.csv: the first column has no name and is not used']),
    'unnamed.csv': (b'Unnamed: 0,prompt,completion\n0,a,b\n', 1, 'b', ['columns that are not used: Unnamed: 0']),
    'wrapped.json': (js(dict(version='1', samples=PQ)), 3, 'c2', ['wrapped.json: rows are read from samples; not used: version']),
    'beside_splits.json': (js(dict(train=PQ, about='x')), 3, 'c2', ['beside_splits.json: rows are read from train; not used: about']),
    'lines.txt': (G, 3, 'c2', ['lines.txt holds JSON and is read as such (data.sample_by: line for plain text)']),
    'two_lists.json': (js(dict(data=PQ, meta=[dict(a=1)])), 3, 'c2', ['two_lists.json: rows are read from data; not used: meta']),
    'numbers.jsonl': (jsonl([dict(prompt=1, completion=2.5, n=None)]), 1, '2.5', ['columns that are not used: n'])}

@pytest.mark.parametrize('name', NOTED)
def test_files_that_are_read_with_a_word(name, folder):
    content,n,last,notes = NOTED[name]
    (folder/name).write_bytes(content)
    seen = inspect(name, {})
    assert (seen.rows, seen.unreadable, texts(seen)[-1][-1])==(n, 0, last) and (notes is None or seen.notes==notes)

FORMS_SAID = 'data.prompt: the columns {} have no known form. Set data.prompt and data.completion to say which text is the prompt and which the answer'
NO_FILE = { # file → (content, the line): refused as a whole
    'pointer.parquet': (b'version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n', 'pointer.parquet is a pointer of Git LFS, not the data: run `git lfs pull`, or download the file itself'),
    'pointer.jsonl': (b'version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n', 'pointer.jsonl is a pointer of Git LFS, not the data: run `git lfs pull`, or download the file itself'),
    'pointer.json': (b'version https://git-lfs.github.com/spec/v1\noid sha256:abc\n', 'pointer.json is a pointer of Git LFS, not the data: run `git lfs pull`, or download the file itself'),
    'page.json': (b'\n<!DOCTYPE html>\n<html></html>', 'page.json is a web page, not data: download the raw file'), 'page.arrow': (b'<html>404</html>', 'page.arrow is a web page, not data: download the raw file'),
    'table.jsonl': (b'PAR1\x15\x04', 'table.jsonl is a Parquet file: rename it to .parquet'), 'packed.csv': (b'\x1f\x8b\x08', 'packed.csv is packed with gzip: add .gz to its name'),
    'russian.csv': ('prompt,completion\nГде телефон,Здесь он\n'.encode('cp1251'), 'russian.csv, line 2: byte 0xc3 at position 1 is not UTF-8: save the file as UTF-8'),
    'korean.csv': ('prompt,completion\n열쇠는 어디에,여기 있습니다\n'.encode('euc-kr'), 'korean.csv, line 2: byte 0xbf at position 1 is not UTF-8: save the file as UTF-8'),
    'japanese.txt': ('かぎはどこですか。ここにあります。\n'.encode('shift-jis'), 'japanese.txt, line 1: byte 0x82 at position 1 is not UTF-8: save the file as UTF-8'),
    'mac.csv': ('prompt,completion\ncafé à la crème,ménage\n'.encode('mac-roman'), 'mac.csv, line 2: byte 0x8e at position 4 is not UTF-8: save the file as UTF-8'),
    'russian.json': (json.dumps([dict(text='Где мой телефон')], ensure_ascii=False).encode('cp1251'), 'russian.json, line 1: byte 0xc3 at position 12 is not UTF-8: save the file as UTF-8'),
    'no_header.csv': (b'Where?,Here\nWho?,Me\n', FORMS_SAID.format('Where?, Here')+'. If the first line is a row, set data.header to none'),
    'two_arrays.json': (js([1])+b' '+js(PQ), 'two_arrays.json, line 1: not JSON: text behind the end of the list at character 5'),
    'cut_pretty.jsonl': (js(P, indent=2)+b'\n{\n "prompt": "c",\n', 'cut_pretty.jsonl, line 7: not JSON: Expecting property name enclosed in double quotes at character 1'),
    'twice.json': (b'[{"prompt": "a", "prompt": "b", "completion": "c"}]', "twice.json: two keys are called 'prompt'"), 'empty_list.json': (b'[]', 'empty_list.json has no rows'), 'empty_list.jsonl': (b'[]', 'empty_list.jsonl has no rows'),
    'empty_object.json': (b'{}', 'no row of empty_object.json can be read: empty_object.json, row 1: expected an object with keys, got an empty one'), 'scalar.jsonl': (b'42\n', 'no row of scalar.jsonl can be read: scalar.jsonl, line 1: expected an object such as {"prompt": …, "completion": …}, got a number'),
    'null.json': (b'null', 'null.json: expected a list of rows, got null'), 'deep.json': (b'['*100_000, 'no row of deep.json can be read: deep.json, line 1: nested too deeply'), 'deep_lines.json': (b'[\n'+b'['*100_000, 'deep_lines.json is nested too deeply'),
    'many.csv': (b'a b c,'*4000+b'z\nx\n', "many.csv, line 1: two columns are called 'a b c'"), 'two_names.csv': (b',,prompt\n0,1,a\n', 'two_names.csv, line 1: column 2 has no name. The first line must name the columns'),
    'pictures.jsonl': (jsonl([dict(messages=HI, images=['a.png'])]), "data.train: the column 'images' holds pictures or sound, and only text can be trained on. Leave it out, or set data.prompt and data.completion"),
    'lists.json': (js(dict(a=[dict(x=1)], b=[dict(y=1), dict(y=2)])), 'lists.json: the columns differ in length: a 1, b 2'), 'nulls.csv': (b'prompt,completion\n\0,b\n'[:18]+b'', 'nulls.csv has no rows')}

@pytest.mark.parametrize('name', NO_FILE)
def test_files_that_are_refused(name, folder):
    content,said = NO_FILE[name]
    (folder/name).write_bytes(content)
    with pytest.raises(QLoRAError) as e: prepare(cell(name), tiny.tokenizer(), {})
    assert line(e)==said

LOST = { # file → (content, rows that are read, the line of the first problem)
    'broken_first.jsonl': (b'{"prompt": "a", "compl\n'+G, 3, 'broken_first.jsonl, line 1: not one JSON object: Unterminated string starting at character 17'),
    'damaged.jsonl': ('{"prompt": "größer", "completion": "ä"}\n'.encode()+b'{"prompt": "\xff", "completion": "b"}\n', 1, 'damaged.jsonl, line 2: byte 0xff at position 13 is not UTF-8: save the file as UTF-8'),
    'damaged.csv': ('prompt,completion\nÄÖÜ,ß\n'.encode()+b'caf\xe9,b\n', 1, 'damaged.csv, line 3: byte 0xe9 at position 4 is not UTF-8: save the file as UTF-8'),
    'twice.jsonl': (G+b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', 3, "twice.jsonl, line 4: two keys are called 'prompt'"),
    'lists.jsonl': (G+b'[{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]\n', 3, 'lists.jsonl, line 4: expected an object such as {"prompt": …, "completion": …}, got a list'),
    'long.jsonl': (G+b'{"prompt": "a", "completion": {"b": 1}, "'+b'k'*5000+b'": 1}\n', 3, 'long.jsonl, line 4, column completion: expected text, got an object'),
    'picture_parts.jsonl': (jsonl([dict(messages=HI), dict(messages=[dict(role='user', content=[dict(type='image_url', image_url='x')]), HI[1]])]), 1,
        "picture_parts.jsonl, line 2, column messages: a message contains 'image_url', but only text can be trained on"),
    'late_pictures.jsonl': (jsonl([dict(messages=HI, images=[])]*120+[dict(messages=HI, images=['a.png'])]), 120, 'late_pictures.jsonl, line 121, column images: holds pictures or sound, and only text can be trained on'),
    'late_form.jsonl': (jsonl(PQ*50+[dict(x='1', y='2')]), 150, 'late_form.jsonl, line 151: expected the columns prompt, completion; the row has x, y'),
    'null_turn.jsonl': (jsonl([dict(messages=HI), dict(messages=[None])]), 1, "null_turn.jsonl, line 2, column messages: expected messages with 'role' and 'content', got null in the list"),
    'uneven.jsonl': (jsonl([dict(messages=HI), dict(messages=dict(role=['user', 'assistant'], content=['Hi']))]), 1, 'uneven.jsonl, line 2, column messages: expected a list of messages, got an object'),
    'half.jsonl': (jsonl([dict(messages=HI)])+b'{"messages": [{"role": "user", "content": "Hi", "name": "\\ud83d"}]}', 1,
        'half.jsonl, line 2, column messages: contains half a character (a lone surrogate): the file was truncated or converted incorrectly'),
    'two_languages.jsonl': (jsonl([dict(translation=dict(de='a', en='b')), dict(translation=[dict(role='user', content='x')])]), 1, 'two_languages.jsonl, line 2, column translation: expected two languages, got a list'),
    'tools.jsonl': (jsonl([dict(messages=HI), dict(messages=HI, tools='search')]), 1, "tools.jsonl, line 2, column tools: the list of tools is no JSON: 'search'")}

@pytest.mark.parametrize('name', LOST)
def test_rows_that_are_lost_are_counted(name, folder):
    content,n,said = LOST[name]
    (folder/name).write_bytes(content)
    seen = inspect(name, {})
    total = content.strip().count(b'\n')+1-name.endswith('.csv')
    assert (seen.rows, seen.rows+seen.unreadable, str(seen.problems[0]))==(n, total, said) and said in str(seen)

def test_the_corpus_is_large_enough(): assert len(TRAINED)+len(NOTED)+len(NO_FILE)+len(LOST)>=90

def test_a_table_without_a_header(folder):
    (folder/'n.csv').write_text('Where?,Here\nWho?,"Me,\ntoo"\n')
    (folder/'n.tsv').write_text('Where?\tHere\nWho?\tMe\n')
    for name,last in (('n.csv', 'Me,\ntoo'), ('n.tsv', 'Me')):
        d = prepare(cell(name, header='none', prompt='column_1', completion='column_2'), tiny.tokenizer(), {})
        assert [[m['content'] for m in ms] for ms in d.train.messages]==[['Where?', 'Here'], ['Who?', last]]

@pytest.mark.parametrize('by,wanted', [('line', ['one', 'and a half', 'two']), ('paragraph', ['one\nand a half', 'two']), ('file', ['one\nand a half\n\n\ntwo'])])
def test_what_a_row_of_a_text_file_is(by, wanted, folder):
    (folder/'story.txt').write_text('one\nand a half\n\n\ntwo\n')
    d = prepare(cell('story.txt', sample_by=by), tiny.tokenizer(), {})
    assert [ms[0]['content'] for ms in d.train.messages]==wanted and d.notes==[]
    assert prepare(cell('story.txt'), tiny.tokenizer(), {}).notes==['train: story.txt: each line is a row. For paragraphs or the whole file, set data.sample_by']

# ---- folders

def test_what_a_data_set_has_beside_its_rows_is_left_out_and_named(folder):
    for name,text in {'README.md': '# My set\n\nRows about keys.\n', 'dataset_info.json': '{"a": {"file_name": "train.jsonl"}}', 'notes.txt': 'x', 'LICENSE': 'MIT', 'load.py': 'x', '_SUCCESS': ''}.items(): (folder/name).write_text(text)
    (folder/'train.jsonl').write_bytes(G)
    (folder/'.gitattributes').write_text('x')
    seen = inspect('.', {})
    assert seen.rows==3 and seen.notes==['.: files that are not used: LICENSE, README.md, _SUCCESS, dataset_info.json, load.py, notes.txt']

@pytest.mark.parametrize('test', ['hiddentest.jsonl', 'testset.jsonl', 'my-test.jsonl', 'test/rows.jsonl', 'blind_test_v2.jsonl', 'test-00000-of-00001.jsonl'])
def test_splits_of_a_folder(test, folder):
    for name in ('train.jsonl', test):
        (folder/'d'/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/'d'/name).write_bytes(G)
    assert inspect('d', {}).splits==dict(train=3, test=3)
    assert 'train: d also has test, which is not used. To validate on it, set validation: d' in prepare(cell('d'), tiny.tokenizer(), {}).notes

def test_words_that_only_contain_the_name_of_a_split(folder):
    for name in ('latest.jsonl', 'contest.jsonl', 'fastest.jsonl', 'constraint.jsonl'): (folder/name).write_bytes(G)
    assert inspect('.', {}).splits==dict(train=12)

def test_a_folder_of_prose_is_text(folder):
    (folder/'d').mkdir()
    for name in ('one.md', 'two.txt', 'README.md'): (folder/'d'/name).write_text('Once.\n')
    seen = inspect('d', {})
    assert (seen.form, seen.rows)==('text', 2) and 'd: files that are not used: README.md' in seen.notes

def test_the_error_of_a_folder_names_the_file(folder):
    (folder/'a.jsonl').write_bytes(G)
    (folder/'b.jsonl').write_text('{"x": "1", "y": "2"}\n')
    assert refused('.').startswith('data.prompt: b.jsonl: the columns x, y have no known form')

def test_files_of_one_name_are_told_apart(folder):
    for name in ('a', 'b'):
        (folder/name).mkdir()
        (folder/name/'rows.jsonl').write_bytes(G)
    assert [inspect('.', {}).at(i) for i in (0, 3)]==['a/rows.jsonl, line 1', 'b/rows.jsonl, line 1']

@pytest.mark.parametrize('good,bad', [(1, 0), ('yes', 'no'), ('1', '0'), (True, False)])
def test_good_and_bad_in_any_spelling(good, bad):
    made = [dict(prompt=f'q{i}', completion='BAD' if i%3==0 else 'fine', label=bad if i%3==0 else good) for i in range(9)]
    seen = rows(made)
    assert [ms[-1]['content'] for ms in seen.messages]==['fine']*6 and 'marked as a bad one: 3' in ' '.join(seen.notes)

def test_columns_of_pandas_are_joined_by_their_index(folder):
    (folder/'a.json').write_text(json.dumps(dict(prompt={'0': 'a', '1': 'b'}, completion={'1': 'B', '0': 'A'})))
    assert texts(inspect('a.json'))==[['a', 'A'], ['b', 'B']]
    (folder/'b.json').write_text(json.dumps(dict(prompt={'0': 'a', '1': 'b'}, completion={'1': 'B', '2': 'A'})))
    with pytest.raises(QLoRAError, match="the column 'completion' has other keys"): inspect('b.json')

def test_files_that_are_not_used_are_named_whichever_split_is_read(folder):
    data = folder/'set'
    data.mkdir()
    for name in ('dev.jsonl', 'train.jsonl', '_part2.jsonl'): (data/name).write_text(json.dumps(dict(prompt='q', completion='a'))+'\n')
    (data/'more.xlsx').write_bytes(b'x')
    notes = ' '.join(prepared(None, train='set').train.notes)
    assert 'more.xlsx' in notes and '_part2.jsonl' in notes

# ---- what stands beside the texts of a row

@pytest.mark.parametrize('value', [0, '0', '0.0', ' 0 ', 'False'])
def test_a_turn_of_two_sides_says_that_its_answer_is_not_trained(value):
    seen = rows([dict(conversation=[dict(human='Hi', assistant='Yo', weight=value, context='c'), dict(human='Hi', assistant='Yo', thinking='t')])])
    assert seen.messages[0]==[HI[0], HI[1] | dict(train=False), HI[0], HI[1] | dict(reasoning_content='t')]
    assert seen.notes==['keys of messages that are not used: context', 'messages not trained because of their weight, loss or train key: 1 (first: rows, row 1)']

def test_numbers_as_text_are_weights():
    seen = rows([dict(messages=[HI[0], HI[1] | dict(weight='1.0'), HI[0], HI[1] | dict(weight='0.0')])])
    assert [m.get('train', True) for m in seen.messages[0]]==[True, True, True, False]
    assert seen.notes==['messages not trained because of their weight, loss or train key: 1 (first: rows, row 1)']

def test_of_two_keys_that_mean_the_same_the_second_is_named():
    call = dict(name='weather', arguments=dict(town='Bonn'))
    seen = rows([dict(messages=[HI[0], HI[1] | dict(reasoning_content='a', thinking='b', reasoning='a', tool_calls=[CALL], function_call=call)])])
    assert seen.messages[0][1]==HI[1] | dict(reasoning_content='a', tool_calls=[CALL])
    assert seen.notes==['keys of messages that are not used: thinking, function_call']

def test_a_system_column_beside_another_system_message_is_counted():
    own = dict(role='system', content='Be kind.')
    seen = rows([dict(messages=[own, *HI], system='Be brief.'), dict(messages=[own, *HI], system='Be kind.'), dict(messages=HI, system='Be brief.')])
    assert [ms[0]['content'] for ms in seen.messages]==['Be kind.', 'Be kind.', 'Be brief.']
    assert seen.notes==['rows whose system column is not used, because their conversation has another system message: 1 (first: rows, row 1)']

def test_earlier_turns_stand_before_a_conversational_prompt():
    first = dict(role='system', content='Be kind.')
    seen = rows([dict(prompt=[first, HI[0]], completion=[HI[1]], history=[['q', 'a']])])
    assert texts(seen)==[['Be kind.', 'q', 'a', 'Hi', 'Yo']] and seen.notes==[]

def test_a_prompt_beside_a_whole_conversation_is_counted_where_it_is_another():
    other = [HI[0], HI[1] | dict(content='No')]
    seen = rows([dict(prompt=p, history=h, chosen=HI, rejected=other) for p,h in (('Hi', None), ('Why?', [['q', 'a']]))])
    assert texts(seen)==[['Hi', 'Yo']]*2
    assert [o for o in seen.notes if 'not used, because' in o]==[
        'rows whose history is not used, because their conversation is complete: 1 (first: rows, row 2)',
        'rows whose prompt column is not used, because their conversation has another prompt: 1 (first: rows, row 2)']

def test_plain_text_takes_neither_a_system_message_nor_tools():
    seen = read([parts('rows', dict(rows=[dict(text='Once.', tools='[{"name": "weather"}]'), dict(text='Twice.')]))], 'rows', Asked(system='Be kind.'))
    assert list(seen.messages)==[[dict(role='text', content='Once.')], [dict(role='text', content='Twice.')]]
    assert seen.notes==['rows of plain text, on which data.system has no effect: 2 (first: rows, row 1)',
        'rows of plain text, on which their tools have no effect: 1 (first: rows, row 1)']

@pytest.mark.parametrize('column', ['input', 'question', 'instruction'])
def test_what_a_preference_answers(column): assert texts(rows([{column: 'Hi', 'chosen': 'Yo', 'rejected': 'No'}]))==[['Hi', 'Yo']]

def test_an_empty_prompt_in_a_history_is_counted():
    seen = rows([dict(prompt='Hi', completion='Yo', history=[['', 'x']])])
    assert seen.notes==['rows trained with an empty prompt: 1 (first: rows, row 1)']

# ---- columns and lists of a row

def test_a_column_that_only_another_form_uses_is_named():
    made = [dict(prompt='q', completion='a')]*3+[dict(prompt='q', completion='a', text='lost'), dict(text='Once.')]
    seen = rows(made)
    assert texts(seen)==[['q', 'a']]*4+[['Once.']] and 'columns that are not used: text' in seen.notes
    assert not any('not used' in o for o in rows(made[:3]+made[4:]).notes)

def test_two_lists_run_side_by_side():
    asked = Asked('{a.q}', '{b.r}')
    def seen(*rs): return read([parts('rows', dict(rows=list(rs)))], 'rows', asked)
    good = dict(a=[dict(q='1'), dict(q='2')], b=[dict(r='I'), dict(r='II')])
    assert texts(seen(good))==[['1', 'I'], ['2', 'II']]
    bad = seen(good, good | dict(a=[dict(q='1')]))
    assert len(bad.messages)==2 and list(map(str, bad.problems))==['rows, row 2: the lists differ in length: a has 1, b has 2']

# ---- sources

def test_files_that_begin_with_a_dot_are_named_unless_tools_leave_them(folder):
    data = folder/'set'
    for name in ('a.jsonl', '.b.jsonl', '.DS_Store', '.gitignore', '.ipynb_checkpoints/a-checkpoint.jsonl', '.git/rows.jsonl'):
        (data/name).parent.mkdir(parents=True, exist_ok=True)
        (data/name).write_bytes(G)
    seen = inspect('set', {})
    assert len(seen.messages)==3 and seen.notes==['set: files that are not used: .b.jsonl']

def test_a_list_of_paths_is_its_files_and_names_of_files_are_no_rows(folder):
    for name in ('a.jsonl', 'b.jsonl'): (folder/name).write_bytes(G)
    both = [folder/'a.jsonl', folder/'b.jsonl']
    assert len(inspect(both).messages)==6
    said = 'rows holds names of files, not rows: make each a Path, or name the files under data.train'
    assert said in refused(list(map(str, both)))
    with pytest.raises(QLoRAError, match='no such file: .*c.jsonl'): inspect([*both, folder/'c.jsonl'])
    with pytest.raises(QLoRAError, match='rows holds the folder'): inspect([folder])

def test_true_is_written_as_json_writes_it(): assert texts(rows([dict(question='Is it?', answer=True), dict(question='Is it?', answer=1.5)]))==[['Is it?', 'true'], ['Is it?', '1.5']]

@pytest.mark.parametrize('good,bad', [(1, 0), ('yes', 'no')])
def test_bad_answers_that_come_late_are_left_out(good, bad):
    made = [dict(prompt=f'q{i}', completion='fine' if i<150 else 'BAD', label=good if i<150 else bad) for i in range(160)]
    seen = rows(made)
    assert {ms[-1]['content'] for ms in seen.messages}=={'fine'} and len(seen.messages)==150
    assert seen.notes==['rows left out because their answer is marked as a bad one: 10 (first: rows, row 151)']

def test_bad_answers_that_come_first_are_left_out():
    made = [dict(prompt=f'q{i}', completion=f'a{i}', label=int(i>=120)) for i in range(130)]
    seen = rows(made)
    assert len(seen.messages)==10 and seen.left_out==120

KTO = [dict(prompt=f'q{i}', completion=f'a{i}') for i in range(130)]

@pytest.mark.parametrize('bad,good', [(0, 1), ('0', '1'), ('no', 'yes')])
@pytest.mark.parametrize('column', ['label', 'Label', 'weight', 'kto_tag'])
def test_a_mark_is_found_however_late_it_changes(column, bad, good):
    made = [row | {column: good if i>=120 else None if i<50 else bad} for i,row in enumerate(KTO)]
    seen = rows(made)
    assert (seen.rows, seen.left_out)==(60, 70) and not any('not used' in o for o in seen.notes)

def test_a_mark_of_one_file_is_one_in_the_next(folder):
    for name,label in (('bad.jsonl', 0), ('good.jsonl', 1)): (folder/'set'/name).parent.mkdir(exist_ok=True), (folder/'set'/name).write_bytes(jsonl([o | dict(label=label) for o in PQ]))
    seen = inspect('set', {})
    assert (seen.rows, seen.left_out)==(3, 3) and seen.at(0)=='good.jsonl, line 1'

def test_a_mark_holds_for_rows_of_another_form():
    seen = rows([*[dict(prompt='q', completion='a', label=1)]*3, dict(messages=HI, label=0), dict(messages=HI, label=1)])
    assert texts(seen)==[['q', 'a']]*3+[['Hi', 'Yo']] and seen.left_out==1

def test_answers_all_marked_no():
    with pytest.raises(QLoRAError, match='2 are marked as bad answers'): rows([dict(prompt='p', completion='c', label='no')]*2)

@pytest.mark.parametrize('row', [dict(role='x'*500, content='Hi'), dict(role='moderator', content='Hi')])
def test_an_unknown_role_is_refused_in_a_short_line(row): assert len(refused_rows([dict(messages=[row, HI[1]])]))<300

def test_an_unknown_form_is_refused_in_a_short_line(): assert len(refused([{'c'*500: 'a', 'd'*500: 'b'}]))<300

@pytest.mark.parametrize('name', ['Größe.jsonl', 'Ordner ü/Zeilen 🐈.jsonl', 'données.csv'])
def test_files_whose_names_are_not_english(name, folder):
    (folder/name).parent.mkdir(exist_ok=True)
    (folder/name).write_text('prompt,completion\na,b\n' if name.endswith('.csv') else json.dumps(P))
    d = prepare(parse(f'model: demo\ndata: {{train: {name}}}\ntraining: {{max_length: 200}}'), tiny.tokenizer(), {})
    assert len(d.train)==1 and d.train.at(0)==f'{name.split("/")[-1]}, line {2 if name.endswith(".csv") else 1}'

def test_one_row_in_a_batch_that_is_larger_than_the_set():
    d = prepare(parse('model: demo\ndata: {train: rows}\ntraining: {max_length: 200, per_device_train_batch_size: 8, gradient_accumulation_steps: 4}'), tiny.tokenizer(), dict(rows=[P]))
    assert len(d.train)==1 and 'steps per epoch' in str(d) and batching.steps_per_epoch(1, 8, 4)==1
