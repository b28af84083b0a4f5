"What is learned from a row, against strings written by hand; what happens to files that are not as they should be"
import json
from types import SimpleNamespace as S
import pytest, tiny
from qlora_nb.data import choose_template, encode, encode_rows, form, load, prepare, to_messages
from qlora_nb.errors import QLoRAError

def section(**kw): return S(**dict(prompt=None, completion=None, system=None)|kw)
def config(max_length=200, how='truncate', completion_only=True, **data):
    return S(data=S(**dict(train='rows', validation=None, validation_size=None, chat_template='auto', prompt=None, completion=None, system=None, on_overlength=how)|data),
        training=S(max_length=max_length, completion_only_loss=completion_only, seed=1))

ONE = [dict(role='user', content='Hi'), dict(role='assistant', content='Yo')]
TWO = [dict(role='system', content='Be brief'), *ONE, dict(role='user', content='Bye'), dict(role='assistant', content='Ciao')]
FULL = { # template → (single turn, two turns with a system text), as the model sees them
    'llama-2': ('<s>[INST] Hi [/INST] Yo </s>', '<s>[INST] <<SYS>>\nBe brief\n<</SYS>>\n\nHi [/INST] Yo </s><s>[INST] Bye [/INST] Ciao </s>'),
    'alpaca': ('<s>### Instruction:\nHi\n\n### Response:\nYo</s>', '<s>Be brief\n\n### Instruction:\nHi\n\n### Response:\nYo</s>### Instruction:\nBye\n\n### Response:\nCiao</s>'),
    'plain': ('<s>Hi\nYo</s>', '<s>Be brief\nHi\nYo</s>Bye\nCiao</s>')}
LEARNED = {'llama-2': (' Yo </s>', ' Yo </s> Ciao </s>'), 'alpaca': ('Yo</s>', 'Yo</s>Ciao</s>'), 'plain': ('Yo</s>', 'Yo</s>Ciao</s>')}

def text(tok, ids): return ''.join(tok.convert_ids_to_tokens(ids))
def learned(tok, e): return text(tok, [t for t in e['labels'] if t!=-100])

@pytest.mark.parametrize('name', FULL)
@pytest.mark.parametrize('turns', [0, 1])
def test_templates(name, turns):
    tok = tiny.tokenizer()
    e = encode(tok, choose_template(tok, name), (ONE, TWO)[turns])
    assert text(tok, e['input_ids'])==FULL[name][turns] and learned(tok, e)==LEARNED[name][turns] and e['merged']==0

@pytest.mark.parametrize('name', FULL)
def test_the_prompt_of_training_is_the_prompt_of_generation(name):
    tok = tiny.tokenizer()
    template = choose_template(tok, name)
    asked = tok(template.text(tok, ONE[:1], prompt=True), add_special_tokens=False)['input_ids']
    e = encode(tok, template, ONE)
    assert e['input_ids'][:len(asked)]==asked and all(l==-100 for l in e['labels'][:len(asked)]) and e['labels'][len(asked)]!=-100

def test_the_end_of_sequence_is_learned_when_it_is_the_padding_token_too():
    tok = tiny.tokenizer()
    tok.pad_token = tok.eos_token
    e = encode(tok, choose_template(tok, 'alpaca'), ONE)
    assert e['labels'][-1]==tok.eos_token_id==tok.pad_token_id

def test_what_follows_the_last_end_of_sequence_is_left_out():
    tok = tiny.tokenizer("{% for m in messages %}{{ m['content'] }}{{ eos_token }}\n{% endfor %}")
    assert text(tok, encode(tok, choose_template(tok), ONE)['input_ids'])=='Hi</s>\nYo</s>'

def test_an_answer_without_end_of_sequence_gets_one():
    tok = tiny.tokenizer("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    assert learned(tok, encode(tok, choose_template(tok), ONE))=='Yo|</s>'

def test_plain_text_is_learned_whole():
    tok = tiny.tokenizer()
    assert learned(tok, encode(tok, choose_template(tok), [dict(role='text', content='Once')]))=='Once</s>'

def test_everything_is_learned_when_asked():
    tok = tiny.tokenizer()
    assert learned(tok, encode(tok, choose_template(tok, 'plain'), ONE, completion_only=False))=='<s>Hi\nYo</s>'

def test_a_base_model_of_the_llama_2_kind_gets_its_template_and_keeps_it(tmp_path):
    tok = tiny.tokenizer()
    assert choose_template(tok).name=='llama-2' and '[INST]' in tok.chat_template
    own = tiny.tokenizer('{{ messages[0].content }}')
    assert choose_template(own).name=='tokenizer'

@pytest.mark.parametrize('name,said', [('chatml', 'chatml needs <|im_start|> and <|im_end|>'), ('tokenizer', 'has no chat template; choose one of')])
def test_templates_that_cannot_be(name, said):
    with pytest.raises(QLoRAError, match=said.replace('|', r'\|')): choose_template(tiny.tokenizer(), name)

SHAPES = dict(messages=dict(messages=ONE), sharegpt=dict(conversations=[{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yo'}]),
    alpaca=dict(instruction='Hi', input='', output='Yo'), prompt_completion=dict(prompt='Hi', completion='Yo'), question_answer=dict(question='Hi', answer='Yo'),
    dialogue_summary=dict(dialogue='Hi', summary='Yo'), source_target=dict(source='Hi', target='Yo'), text_label=dict(text='Hi', label='Yo'))

@pytest.mark.parametrize('name', SHAPES)
def test_forms(name):
    shape = form(SHAPES[name])
    assert shape[0]==name and to_messages(SHAPES[name], shape, section())==ONE

def test_an_alpaca_input_and_a_template_of_ones_own():
    assert to_messages(dict(instruction='Sum', input='1 2', output='3'), ('alpaca', ('instruction', 'output')), section())[0]['content']=='Sum\n\n1 2'
    ms = to_messages(dict(a='x', b='y'), ('unknown', ()), section(prompt='say {a}', completion='b', system='S'))
    assert [m['content'] for m in ms]==['S', 'say x', 'y']

@pytest.mark.parametrize('spec,said', [('{qestion}', "Did you mean 'question'"), ('qestion', "no column 'qestion'; the columns are question, answer")])
def test_a_column_that_is_not_there(spec, said):
    with pytest.raises(QLoRAError, match=said): to_messages(dict(question='x', answer='y'), ('question_answer', ('question', 'answer')), section(prompt=spec, completion='answer'))

def test_a_role_nobody_knows():
    with pytest.raises(QLoRAError, match="role 'usr'.*Did you mean 'user'"): to_messages(dict(messages=[dict(role='usr', content='x')]), ('messages', ('messages',)), section())

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    return tmp_path

WRITE = dict(jsonl=lambda p, rs: p.write_text(''.join(json.dumps(r)+'\n' for r in rs)), json=lambda p, rs: p.write_text(json.dumps(rs)),
    csv=lambda p, rs: frame(rs).to_csv(p, index=False), tsv=lambda p, rs: frame(rs).to_csv(p, index=False, sep='\t'), parquet=lambda p, rs: frame(rs).to_parquet(p))
def frame(rs): return __import__('pandas').DataFrame(rs)

@pytest.mark.parametrize('kind', WRITE)
def test_files(kind, folder):
    WRITE[kind](folder/f'rows.{kind}', tiny.rows(5))
    assert load(f'rows.{kind}').to_list()==tiny.rows(5)

@pytest.mark.parametrize('make', [list, frame, lambda rs: __import__('datasets').Dataset.from_list(rs), lambda rs: {k: [r[k] for r in rs] for k in rs[0]}])
def test_variables(make): assert load('v', dict(v=make(tiny.rows(5)))).to_list()==tiny.rows(5)

@pytest.mark.parametrize('name,content,said', [('a.jsonl', '{"prompt": "x"\n', 'a.jsonl cannot be read as json'), ('b.jsonl', '', 'b.jsonl is empty'),
    ('c.xls', 'x', 'unknown kind of file; known are .jsonl'), ('d.csv', 'prompt,completion\n', 'd.csv has no rows')])
def test_broken_files(name, content, said, folder):
    (folder/name).write_text(content)
    with pytest.raises(QLoRAError, match=said) as e: load(name)
    assert len(str(e.value).splitlines())==1

def test_a_hub_set_without_a_network(folder):
    with pytest.raises(QLoRAError, match='nobody/rows is no file'): load('nobody/rows')

def encoded(cfg, rows=None):
    tok = tiny.tokenizer()
    from datasets import Dataset
    rs = Dataset.from_list(rows or [*tiny.rows(3), dict(prompt='who', completion='x'*60), dict(prompt='w'*90, completion='x'), dict(prompt='none', completion=' ')])
    return encode_rows(rs, 'rows', tok, choose_template(tok), cfg)

@pytest.mark.parametrize('how,kept,what', [('truncate', 4, {'dropped: no answer to learn': (1, 6), 'dropped: the prompt alone fills max_length 60': (1, 5),
    'cut at max_length 60, their end-of-sequence token lost': (1, 4)}), ('drop', 3, {'dropped: no answer to learn': (1, 6), 'dropped: longer than max_length 60': (2, 4)})])
def test_every_row_is_accounted_for(how, kept, what):
    d = encoded(config(60, how))
    assert len(d.dataset)==kept==len(d.messages) and d.counts==what and d.rows==6
    assert max(map(len, d.dataset['input_ids']))<=60 and all(any(t!=-100 for t in r) for r in d.dataset['labels'])
    assert all(str(n) in str(d) for n,_ in what.values()) and '⟦ the cat </s>⟧' in d.sample_text

def test_too_long_may_be_refused():
    with pytest.raises(QLoRAError, match='row 4 has .* tokens, max_length is 60 and on_overlength is raise'): encoded(config(60, 'raise'))

def test_nothing_left_is_refused():
    with pytest.raises(QLoRAError, match='no row of rows is left to learn from: 2 dropped'): encoded(config(10, 'drop'), tiny.rows(2))

def test_a_validation_set_split_off_is_the_same_every_time():
    a,b = (prepare(config(validation_size=.25), tiny.tokenizer(), dict(rows=tiny.rows(16))) for _ in range(2))
    assert len(a.validation.dataset)==4 and len(a.train.dataset)==12 and a.validation.messages==b.validation.messages
    assert not {m[0]['content'] for m in a.train.messages} & {m[0]['content'] for m in a.validation.messages}
