"What is learned from a row, against strings written by hand; what is counted, refused, cached, packed and shown"
import json, re
import pytest, tiny
from qlora_nb import parse
from qlora_nb.tokens import batching, encoding
from qlora_nb.tokens.gate import encode_rows, prepare
from qlora_nb.errors import QLoRAError
from qlora_nb.data.messages import Asked
from qlora_nb.data.rows import read
from qlora_nb.data.sources import parts
from qlora_nb.tasks.causal_lm import runs
from qlora_nb.tokens.labels import encode, encode_all
from qlora_nb.tokens.templates import choose_template
from qlora_nb.ui.browser import browse

@pytest.fixture(autouse=True)
def folder(empty): return empty

def config(max_length=200, how='truncate', training='', **data):
    d = ''.join(f'  {k}: {json.dumps(v)}\n' for k,v in (dict(train='rows', on_overlength=how, max_lost=1)|data).items())
    return parse(f'model: demo\ndata:\n{d}training: {{max_length: {max_length}, seed: 1{training}}}')

def said(*turns): return [dict(role=r, content=c) for r,c in turns]
ONE = said(('user', 'Hi'), ('assistant', 'Yo'))
TWO = said(('system', 'Be brief'), ('user', 'Hi'), ('assistant', 'Yo'), ('user', 'Bye'), ('assistant', 'Ciao'))
ZEPHYR = "{% for m in messages %}{{ '<|'+m['role']+'|>\n'+m['content']+eos_token+'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
GEMMA = ("{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>'+('model' if m['role']=='assistant' else m['role'])+'\n'+m['content'] | trim+'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
OWN = dict(zephyr=ZEPHYR, gemma=GEMMA)
SPECIAL = {'chatml': ['<|im_start|>', '<|im_end|>'], 'llama-3': ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], 'gemma': ['<start_of_turn>', '<end_of_turn>'],
    'zephyr': ['<|user|>', '<|assistant|>', '<|system|>']}
WHOLE = { # template → (one turn; two turns with a system text), as the model sees them
    'llama-2': ('<s>[INST] Hi [/INST] Yo </s>', '<s>[INST] <<SYS>>\nBe brief\n<</SYS>>\n\nHi [/INST] Yo </s><s>[INST] Bye [/INST] Ciao </s>'),
    'llama-3': ('<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|></s>',
        '<s><|start_header_id|>system<|end_header_id|>\n\nBe brief<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
        'Yo<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nCiao<|eot_id|></s>'),
    'chatml': ('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|></s>', '<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
        'Yo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCiao<|im_end|></s>'),
    'alpaca': ('<s>### Instruction:\nHi\n\n### Response:\nYo</s>', '<s>Be brief\n\n### Instruction:\nHi\n\n### Response:\nYo</s>### Instruction:\nBye\n\n### Response:\nCiao</s>'),
    'plain': ('<s>Hi\nYo</s>', '<s>Be brief\nHi\nYo</s>Bye\nCiao</s>'),
    'zephyr': ('<|user|>\nHi</s>\n<|assistant|>\nYo</s>', '<|system|>\nBe brief</s>\n<|user|>\nHi</s>\n<|assistant|>\nYo</s>\n<|user|>\nBye</s>\n<|assistant|>\nCiao</s>'),
    'gemma': ('<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn></s>', '<s><start_of_turn>system\nBe brief<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n'
        '<start_of_turn>model\nYo<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nCiao<end_of_turn></s>')}
LEARNED = { # template → (one turn; two turns; two turns cut before their last four tokens)
    'llama-2': (' Yo </s>', ' Yo </s> Ciao </s>', ' Yo </s> Ci'), 'llama-3': ('Yo<|eot_id|></s>', 'Yo<|eot_id|>Ciao<|eot_id|></s>', 'Yo<|eot_id|>Ci'),
    'chatml': ('Yo<|im_end|></s>', 'Yo<|im_end|>Ciao<|im_end|></s>', 'Yo<|im_end|>Ci'), 'alpaca': ('Yo</s>', 'Yo</s>Ciao</s>', 'Yo</s>C'), 'plain': ('Yo</s>', 'Yo</s>Ciao</s>', 'Yo</s>C'),
    'zephyr': ('Yo</s>', 'Yo</s>Ciao</s>', 'Yo</s>C'), 'gemma': ('Yo<end_of_turn></s>', 'Yo<end_of_turn>Ciao<end_of_turn></s>', 'Yo<end_of_turn>Ci')}

def tokenizer(name):
    tok = tiny.tokenizer(OWN.get(name))
    tok.add_special_tokens(dict(additional_special_tokens=SPECIAL.get(name, [])))
    return tok

def chosen(tok, name): return choose_template(tok, 'tokenizer' if name in OWN else name)
def text(tok, ids): return ''.join(tok.convert_ids_to_tokens(ids))
def learned(tok, e): return text(tok, [t for t in e['labels'] if t!=-100])

@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('turns', [0, 1])
def test_templates(name, turns):
    tok = tokenizer(name)
    e = encode(tok, chosen(tok, name), (ONE, TWO)[turns])
    assert text(tok, e['input_ids'])==WHOLE[name][turns] and learned(tok, e)==LEARNED[name][turns] and e['merged']==0
    assert e['labels'][-1]==tok.eos_token_id

@pytest.mark.parametrize('name', WHOLE)
def test_a_cut_row_learns_what_is_left_of_its_answers(name):
    tok = tokenizer(name)
    n = len(encode(tok, chosen(tok, name), TWO)['input_ids'])
    d = encode_rows(read([parts('v', dict(v=[dict(messages=TWO), dict(messages=ONE)]))]), tok, chosen(tok, name), config(n-4))
    row = d.dataset[0]
    assert learned(tok, row)==LEARNED[name][2] and len(row['input_ids'])==n-4 and learned(tok, d.dataset[1])==LEARNED[name][0]
    assert d.findings['truncated'].rows==1 and d.ended==1

@pytest.mark.parametrize('name', WHOLE)
def test_the_prompt_of_training_is_the_prompt_of_generation(name):
    tok = tokenizer(name)
    template = chosen(tok, name)
    asked = tok(template.text(tok, TWO[:-1], prompt=True), add_special_tokens=False)['input_ids']
    e = encode(tok, template, TWO)
    assert e['input_ids'][:len(asked)]==asked and e['labels'][len(asked)-1]==-100 and e['labels'][len(asked)]!=-100

def test_many_rows_are_encoded_as_one_is():
    tok = tokenizer('llama-2')
    template = chosen(tok, 'llama-2')
    rows = [ONE, TWO, [dict(role='text', content='Once')], TWO[:3], ONE]
    assert encode_all(tok, template, rows)==[encode(tok, template, r) for r in rows]

@pytest.mark.parametrize('roles,wanted', [(('user',), 'HiBye</s>'), (('user', 'assistant'), 'HiYo</s>ByeCiao</s>'), (('system', 'assistant'), '<s>Be brief\nYo</s>Ciao</s>')])
def test_any_role_can_be_learned(roles, wanted):
    tok = tokenizer('plain')
    assert learned(tok, encode(tok, chosen(tok, 'plain'), TWO, roles=roles)).replace('\nYo', 'Yo' if 'user' in roles else '\nYo').replace('\n', '' if 'user' in roles else '\n')==wanted

def test_the_end_of_sequence_is_learned_when_it_is_the_padding_token_too():
    tok = tiny.tokenizer()
    tok.pad_token = tok.eos_token
    e = encode(tok, choose_template(tok, 'alpaca'), ONE)
    assert e['labels'][-1]==tok.eos_token_id==tok.pad_token_id

def test_the_collator_leaves_the_end_of_sequence_in_the_labels():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    tok = tiny.tokenizer()
    tok.pad_token = tok.eos_token
    d = prepare(config(), tok, dict(rows=tiny.rows(3)+[dict(prompt='who', completion='x'*20)]))
    batch = DataCollatorForLanguageModeling(pad_token_id=tok.pad_token_id)(list(d.train.dataset))
    for labels,n in zip(batch['labels'].tolist(), d.train.kept): assert labels[n-1]==tok.eos_token_id and set(labels[n:])<={-100}

def test_what_follows_the_last_end_of_sequence_is_left_out():
    tok = tiny.tokenizer("{% for m in messages %}{{ m['content'] }}{{ eos_token }}\n{% endfor %}")
    for whole in (True, False): assert text(tok, encode(tok, choose_template(tok), ONE, whole)['input_ids'])=='Hi</s>\nYo</s>'

def test_an_answer_without_end_of_sequence_gets_one_and_that_is_said():
    tok = tiny.tokenizer("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    assert learned(tok, encode(tok, choose_template(tok), ONE))=='Yo|</s>'
    d = prepare(config(), tok, dict(rows=tiny.rows(3)))
    assert d.train.findings['added'].rows==3 and 'whose template has no end-of-sequence token: it is added' in d.notes[0]

def test_plain_text_is_learned_whole():
    tok = tiny.tokenizer()
    assert learned(tok, encode(tok, choose_template(tok), [dict(role='text', content='Once')]))=='Once</s>'

def test_everything_is_learned_when_asked():
    tok = tiny.tokenizer()
    assert learned(tok, encode(tok, choose_template(tok, 'plain'), ONE, completion_only=False))=='<s>Hi\nYo</s>'

def test_a_base_model_of_the_llama_2_kind_gets_its_template_and_keeps_it(tmp_path):
    from transformers import AutoTokenizer
    tok = tiny.tokenizer()
    assert choose_template(tok).name=='llama-2' and '[INST]' in tok.chat_template
    tok.save_pretrained(tmp_path/'tok')
    again = AutoTokenizer.from_pretrained(tmp_path/'tok')
    assert choose_template(again).text(again, TWO)==choose_template(tok).text(tok, TWO)==WHOLE['llama-2'][1]

@pytest.mark.parametrize('name', ['chatml', 'llama-3'])
def test_a_template_whose_marks_are_missing(name):
    with pytest.raises(QLoRAError, match=f'{name} needs .* which this tokenizer lacks; allowed here are llama-2, alpaca, plain'): choose_template(tiny.tokenizer(), name)

def test_a_merge_across_the_border_is_counted():
    tok = gpt2()
    tok.chat_template = "{% for m in messages %}{{ m['content'] }}{% if m['role']=='user' %} {% endif %}{% endfor %}"
    e = encode(tok, choose_template(tok), said(('user', 'a'), ('assistant', 'b')))
    assert e['merged']==1 and tok.decode([t for t in e['labels'] if t!=-100])==' b<eos>'

def gpt2():
    "A byte-level tokenizer with one merge, space and b"
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocab = {c: i for i,c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    t = Tokenizer(models.BPE(vocab | {'Ġb': len(vocab)}, [('Ġ', 'b')]))
    t.pre_tokenizer,t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    t.add_special_tokens([AddedToken('<eos>', special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<eos>')

# ---- what happens to rows

LONG = [*tiny.rows(3), dict(prompt='who', completion='x'*60), dict(prompt='w'*90, completion='x'), dict(prompt='none', completion=' ')]
def found(d): return {k: (f.rows, f.where) for k,f in d.train.findings.items()}
def ready(cfg, rows=LONG, tok=None, **more): return prepare(cfg, tok or tiny.tokenizer(), dict(rows=rows, **more))

@pytest.mark.parametrize('how,kept,what', [('truncate', 4, dict(empty=(1, 'rows, row 6'), masked=(1, 'rows, row 5'), truncated=(1, 'rows, row 4'))),
    ('drop', 3, dict(empty=(1, 'rows, row 6'), dropped=(2, 'rows, row 4'))), ('split', 6, dict(empty=(1, 'rows, row 6'), split=(2, 'rows, row 4'), pieces=(1, 'rows, row 5')))])
def test_every_row_is_accounted_for(how, kept, what):
    d = ready(config(60, how))
    assert len(d.train)==kept==len(d.train.messages) and found(d)==what and d.train.rows==6
    assert max(d.train.kept)<=60 and all(any(t!=-100 for t in r) for r in d.train.dataset['labels'])
    for n,(_,where) in what.items():
        assert any(d.train.findings[n].said in o and where in o for o in d.notes) and where in str(d) and where in d._repr_html_()
    assert '⟦ the cat </s>⟧' in str(d)

def test_split_rows_lose_no_learned_token():
    rows = [dict(prompt='who', completion='abcdefghij'*12)]
    whole,cut = ready(config(400), rows),ready(config(50, 'split'), rows)
    def all_learned(d): return [t for r in d.train.dataset['labels'] for t in r if t!=-100]
    assert all_learned(whole)==all_learned(cut) and cut.train.ended==1 and len(cut.train)==3

def test_too_long_may_be_refused():
    with pytest.raises(QLoRAError, match=r'rows, row 4 has 82 tokens, more than max_length 60 \(data.on_overlength is raise\)'): ready(config(60, 'raise'))

def test_a_conversation_that_ends_without_an_answer_is_shortened():
    d = ready(config(), [dict(messages=[*TWO, dict(role='user', content='And?')]), dict(messages=TWO[:2]), dict(messages=[])])
    assert found(d)==dict(trailing=(1, 'rows, row 1'), empty=(2, 'rows, row 2')) and d.train.messages[0]==TWO

def test_what_the_template_refuses_is_counted():
    tok = tiny.tokenizer("{% for m in messages %}{% if m['role']=='system' %}{{ raise_exception('no system here') }}{% endif %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    d = ready(config(), [dict(messages=ONE), dict(messages=TWO)], tok)
    assert found(d)==dict(refused=(1, 'rows, row 2')) and 'no system here' in d.notes[0]

def test_copies_and_unreadable_rows_are_counted(folder):
    (folder/'a.jsonl').write_bytes('{"prompt": "ä", "completion": "b"}\n'.encode()*3+b'nothing\n{"prompt": "caf\xe9", "completion": "x"}\n')
    d = ready(config(train='a.jsonl'))
    assert found(d)==dict(unreadable=(2, 'a.jsonl, line 4: not one JSON object: Expecting value at character 1'), not_utf8=(1, d.train.findings['not_utf8'].where), unknown=(3, 'a.jsonl, line 1'), duplicate=(2, 'a.jsonl, line 2'))
    side, = (folder/'.cache'/'rows').glob('*/train.unreadable.jsonl')
    assert len(side.read_text().splitlines())==2 and d.train.rows==5 and not (folder/'runs').exists()

# ---- the gate

@pytest.mark.parametrize('rows,cfg,line', [([], {}, 'rows has no rows'), (tiny.rows(2), dict(max_length=10, how='drop'), 'data.train: no row of rows is left to train on: 2 rows longer than max_length 10: left out'),
    (tiny.rows(4), dict(max_length=40), 'training.max_length: no row of rows keeps its end-of-sequence token: all 4 are cut at max_length 40'),
    ([dict(a='x', b='y')], {}, 'data.prompt: the columns a, b have no known form'), ([dict(prompt='a', completion='')], {}, 'no row of rows is left to train on: 1 row without an answer to train on: left out'),
    (tiny.rows(4), dict(prompt='{who}'), "data.prompt: no column 'who' for {who}"), (tiny.rows(4), dict(weights=[1, 2]), 'data.weights needs several sources, but data.train names one'),
    (tiny.rows(1), dict(validation_size=.5), 'rows has 1 row, too few'), (tiny.rows(4), dict(split='tset'), "data.split: no split 'tset'"),
    (tiny.rows(4), dict(group='place'), "data.group: rows has no column 'place'"), (tiny.rows(4), dict(completion='completion'), 'data.completion needs data.prompt as well')])
def test_nothing_to_learn_stops_the_run(rows, cfg, line):
    with pytest.raises(QLoRAError) as e: ready(config(**cfg), rows)
    assert line in str(e.value) and len(str(e.value).splitlines())==1

def test_validation_rows_that_are_training_rows():
    rows,some = tiny.rows(20),[dict(prompt=f'new {i}', completion='x') for i in range(18)]
    d = ready(config(validation='held', max_overlap=.2), rows, held=[*some, *rows[:2]])
    assert d.validation.findings['overlap'].rows==2 and 'validation: 2 rows also found in the training set (first: held, row 19: the cat)' in d.notes
    with pytest.raises(QLoRAError, match='data.validation: 2 rows also found in the training set .*: that is 10% of the validation set, and data.max_overlap is 5%'):
        ready(config(validation='held', max_overlap=.05), rows, held=[*some, *rows[:2]])
    assert 'validation uses the same rows as training (rows), so its loss says nothing about new rows' in ready(config(validation='rows'), rows).notes

def test_a_validation_set_split_off_is_the_same_every_time():
    a,b = (ready(config(validation_size=.25), tiny.rows(16)) for _ in range(2))
    assert len(a.validation)==4 and len(a.train)==12 and a.validation.messages==b.validation.messages
    assert not {m[0]['content'] for m in a.train.messages} & {m[0]['content'] for m in a.validation.messages}

def test_splits_and_mixtures_from_the_config():
    rows = dict(train=tiny.rows(9), validation=tiny.rows(16)[9:])
    assert 'rows also has validation, which is not used. To validate on it, set validation: rows' in ready(config(), rows).notes[0]
    assert len(ready(config(validation='rows'), rows).validation)==7
    d = ready(config(train=['rows', 'more'], weights=[3, 1]), tiny.rows(9), more=tiny.rows(16)[9:])
    assert len(d.train)==12 and 'train: mixed by weight: rows 9 of 9 rows, more 3 of 7 rows' in d.notes

def test_the_demo_as_the_quickstart_has_it():
    d = prepare(parse('model: demo\ndata: {train: demo, validation: demo}\ntraining: {max_length: 512}'), tiny.tokenizer())
    assert (len(d.train), len(d.validation), d.notes, d.validation.form)==(900, 64, ['train: columns that are not used: id', 'validation: columns that are not used: id'], 'prompt_completion (instruction)')

# ---- the cache

def written(monkeypatch):
    "The passes over rows from here on"
    calls,write = [],encoding._write
    def noted(*a):
        calls.append(a)
        write(*a)
    monkeypatch.setattr(encoding, '_write', noted)
    return calls

def test_rows_are_encoded_once(monkeypatch):
    first = ready(config(120))
    calls = written(monkeypatch)
    again = ready(config(120))
    assert not calls and list(again.train.dataset)==list(first.train.dataset) and str(again)==str(first) and again.train.messages==first.train.messages
    changes = [dict(cfg=config(121)), dict(cfg=config(120, 'drop')), dict(rows=LONG[1:]),
        dict(cfg=config(120, chat_template='plain')), dict(cfg=config(120, system='Be kind')), dict(cfg=config(120, learn='user'))]
    for n,c in enumerate(changes, 1):
        ready(c.get('cfg', config(120)), c.get('rows', LONG))
        assert len(calls)==n

def test_rows_are_encoded_again_when_the_code_that_makes_them_changes(monkeypatch, folder):
    ready(config(120))
    calls = written(monkeypatch)
    own = {'checks.py', 'encoding.py', 'labels.py', 'rendering.py', 'templates.py'}
    assert own<{o.name for o in encoding.CODE} and 'classification.py' in {o.name for o in encoding.CODE} and all(o.is_file() for o in encoding.CODE)
    for n,path in enumerate(encoding.CODE, 1):
        changed = folder/path.name
        changed.write_bytes(path.read_bytes()+b'\n')
        monkeypatch.setattr(encoding, 'CODE', tuple(changed if o==path else o for o in encoding.CODE))
        ready(config(120))
        assert len(calls)==n
    ready(config(120))
    assert len(calls)==len(encoding.CODE)

def test_the_oldest_encoded_rows_make_room(monkeypatch, folder):
    import os
    ready(config(60))
    old, = (folder/'.cache'/'encoded').glob('*.arrow')
    os.utime(old, (0, 0))
    monkeypatch.setattr(encoding, 'MOST', old.stat().st_size+1)
    ready(config(70))
    assert not old.exists() and len(list((folder/'.cache'/'encoded').glob('*.arrow')))==1

@pytest.mark.parametrize('suffix', ['.arrow', '.npz', '.json'])
def test_a_part_of_the_cache_that_is_gone_is_made_again(suffix, folder):
    first = ready(config(120))
    one, = (folder/'.cache'/'encoded').glob('*'+suffix)
    one.unlink()
    assert list(ready(config(120)).train.dataset)==list(first.train.dataset) and one.is_file()

# ---- packing

def test_packed_rows_see_only_themselves():
    "Logits of rows packed one behind the other, as the trainer packs them, are those of the rows alone"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    torch.manual_seed(0)
    c = LlamaConfig(vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512)
    rows = ready(config(60), LONG).train.dataset
    packed = pack_dataset(rows.with_format('arrow'), 200, 'bfd').with_format(None)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(list(packed))
    alone = {tuple(r['input_ids']) for r in rows}
    for attention in ('eager', 'sdpa'):
        model = LlamaForCausalLM._from_config(c, attn_implementation=attention).eval()
        with torch.no_grad():
            together = model(input_ids=batch['input_ids'], position_ids=batch['position_ids'], use_cache=False).logits[0]
            joined = model(input_ids=batch['input_ids'], use_cache=False).logits[0]
            starts = [*(batch['position_ids'][0]==0).nonzero().flatten().tolist(), batch['position_ids'].shape[1]]
            ids = [batch['input_ids'][0, a:b] for a,b in zip(starts, starts[1:])]
            apart = [float((model(input_ids=i[None], use_cache=False).logits[0]-together[a:b]).abs().max()) for i,a,b in zip(ids, starts, starts[1:])]
        assert {tuple(i.tolist()) for i in ids}==alone and len(packed)<len(rows)
        print(f'{attention}: largest difference {max(apart):.1e}')
        assert max(apart)<2e-5 and float((joined-together).abs().max())>1e-2

def test_padding_is_counted_as_it_is():
    assert batching.padding_share([4, 2, 3, 3], 2)==pytest.approx(1-12/14) and batching.padding_share([4, 2, 3, 3], 1)==0
    assert batching.bins([7, 3, 5, 5, 9], 10)==3 and batching.packed_padding([7, 3], 10)==0

def test_bins_are_as_few_as_trl_makes():
    import numpy as np
    from datasets import Dataset
    from trl import pack_dataset
    lengths = np.random.default_rng(0).integers(1, 60, 300).tolist()
    packed = pack_dataset(Dataset.from_dict(dict(input_ids=[[1]*n for n in lengths])).with_format('arrow'), 64, 'bfd')
    assert batching.bins(lengths, 64)==len(packed)

# ---- the report

def test_the_report_says_it_all():
    d = ready(config(60, training=', per_device_train_batch_size: 2, gradient_accumulation_steps: 1'))
    for page in (str(d), d._repr_html_()):
        for words in ('prompt_completion (instruction)', 'llama-2 (this base model has no chat template)', 'steps per epoch', 'suggested max_length', 'padding', 'random order', 'cut at max_length 60', 'rows, row 4'):
            assert words in page
    assert '▏' in str(d) and '<svg' in d._repr_html_() and 'max_length is 60' in d._repr_html_() and d._repr_html_().count('<details')==len(re.findall('<summary', d._repr_html_()))>=3
    assert 'GiB planned' not in str(d) and '60 (2.00 GiB planned)' in str(d.priced(lambda n: 2**31))

def test_the_marks_are_the_labels():
    tok = tiny.tokenizer()
    d = ready(config(), [dict(messages=TWO)], tok)
    where,marked = d.train.sample(0)
    assert where=='row 1 · rows, row 1' and [t for on,t in marked if on]==[' Yo </s>', ' Ciao </s>']
    assert marked==runs(tok, d.train.dataset[0]['input_ids'], d.train.dataset[0]['labels'])

def test_hostile_text_stays_text():
    d = ready(config(), [dict(prompt='<script>alert(1)</script>', completion='<b>x</b>')])
    assert '<script>' not in d._repr_html_() and '<b>x' not in d._repr_html_()

def test_stepping_through_rows():
    d = ready(config(), tiny.rows(3))
    b = browse(d)
    assert 'the cat' in b.html.value and 'of 3 rows' in b.html.value
    b.step(1)
    assert b.at.value==2 and 'the dog' in b.html.value
    for _ in range(5): b.step(1)
    assert b.at.value==3
    b.at.value = 1
    assert 'the cat' in b.html.value and '⟦' in b.bundle()['text/plain']
    b.done()

def test_the_instruction_of_a_task_is_said():
    d = ready(config(), [dict(dialogue='A: Tea?', summary='Tea is offered.')])
    assert d.notes==["train: dialogue_summary: 'Summarize the following text.' is put before each prompt (data.prompt replaces it)"]
    assert d.train.messages[0][0]['content']=='Summarize the following text.\n\nA: Tea?'
    assert ready(config(prompt='{dialogue}', completion='summary'), [dict(dialogue='A: Tea?', summary='x')]).train.messages[0][0]['content']=='A: Tea?'

def test_columns_of_ones_own():
    rows = read([parts('v', dict(v=[dict(a='x', b='y')]))], asked=Asked('say {a}', 'b', 'S'))
    assert [m['content'] for m in rows.messages[0]]==['S', 'say x', 'y']
