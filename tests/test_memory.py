"Every term against what PEFT, bitsandbytes and PyTorch really allocate"
import importlib.util, json, math, os, re, shutil, subprocess, sys, warnings, weakref
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from test_models import meta_model

from qlora_nb.facts.optimizers import OPTIMIZERS
from qlora_nb.errors import QLoRAError
from qlora_nb.planning.memory import ON_TOP, budget, rules_of_thumb, stored_terms
from qlora_nb.planning.optimizers import OPTIMIZER_STATE, optimizer_terms
from qlora_nb.planning.terms import count
from qlora_nb.planning.estimate import estimate
from qlora_nb.methods.lora import adapter_shapes, target_linears
from qlora_nb.methods.full import FULL
from qlora_nb.methods.storage import BITS, storage
from qlora_nb.facts.architecture import Architecture, Linear
from qlora_nb.facts.families import FAMILIES
from qlora_nb.facts.models import find, from_config, presets
from qlora_nb.simulation.job import STACKS, Job, make_job, stack
from qlora_nb.simulation.block import Step
from qlora_nb.simulation.step import _forward, _inputs
from qlora_nb.simulation.tensors import SIZE

FLOATS = ('float32', 'bfloat16', 'float16')
LLAMA2 = find('Llama-2-7B')
UNIQUE = list({a.name: a for a in presets() if not a.encoder_decoder}.values())


def arch(hidden=128, layers=2, heads=4, kv=2, dim=32, ff=192, vocab=320, **kw):
    return Architecture('tiny', 'llama', hidden, layers, heads, kv, dim, ff, vocab, **kw)


# ---- quantised weights

def tensors_of(layer):
    "Every tensor that a quantised layer holds"
    q = layer.weight.quant_state
    nested = [q.offset, q.state2.absmax, q.state2.code] if q.nested else []
    return [layer.weight.data, q.absmax, q.code, *nested]


def linear4bit(i, o, quant_type, double_quant):
    import bitsandbytes as bnb
    return bnb.nn.Linear4bit(i, o, bias=False, compress_statistics=double_quant, quant_type=quant_type).to('cpu')


SIZES = [(64, 64), (128, 64), (64, 128), (576, 192), (320, 192), (1536, 576), (64, 3), (192, 5), (64, 1)]
@pytest.mark.parametrize('quant_type', ['nf4', 'fp4'])
@pytest.mark.parametrize('double_quant', [False, True])
@pytest.mark.parametrize('i,o', SIZES)
def test_bytes_of_a_real_4bit_layer(i, o, quant_type, double_quant):
    ts = tensors_of(linear4bit(i, o, quant_type, double_quant))
    assert all(t.nbytes==t.untyped_storage().nbytes() for t in ts)
    want = stored_terms([Linear('x', i, o, 1)], storage('nf4', double_quant))
    assert sum(t.nbytes for t in ts)==sum(t.bytes for t in want)
    assert want[0].bytes==ts[0].nbytes and want[1].bytes==ts[1].nbytes+(ts[4].nbytes if double_quant else 0)


@pytest.mark.parametrize('double_quant', [False, True])
def test_layers_share_nothing(double_quant):
    layers = [linear4bit(64, 64, 'nf4', double_quant) for _ in range(5)]
    stores = [t.untyped_storage().data_ptr() for m in layers for t in tensors_of(m)]
    assert len(set(stores))==len(stores)==5*(6 if double_quant else 3)


@pytest.mark.parametrize('i,o', SIZES)
def test_bytes_of_a_real_8bit_layer(i, o):
    import bitsandbytes as bnb
    w = bnb.nn.Linear8bitLt(i, o, bias=False, has_fp16_weights=False).to('cpu').weight
    assert w.CB.data_ptr()==w.data_ptr()
    assert w.nbytes+w.SCB.nbytes==sum(t.bytes for t in stored_terms([Linear('x', i, o, 1)], storage('int8')))


@pytest.mark.parametrize('bits,double_quant', [(4, True), (4, False), (8, True)])
def test_a_whole_quantised_model(tmp_path, bits, double_quant):
    "Saved, loaded by transformers as the trainer loads it, and weighed"
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM
    a = arch(heads=4, kv=2, dim=32, biases=('q_proj', 'k_proj', 'v_proj'))
    Qwen2ForCausalLM(Qwen2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=192, vocab_size=320,
        tie_word_embeddings=False)).to(torch.bfloat16).save_pretrained(tmp_path)
    four = dict(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=double_quant)
    q = BitsAndBytesConfig(**(four if bits==4 else dict(load_in_8bit=True)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=q, device_map='cpu')
    held = {}
    for m in model.modules():
        w = getattr(m, 'weight', None)
        extra = tensors_of(m)[1:] if hasattr(w, 'quant_state') else [w.SCB] if hasattr(w, 'SCB') else []
        for t in [*m.parameters(recurse=False), *extra]: held[t.untyped_storage().data_ptr()] = t.nbytes
    b = budget(a, stored='int8' if bits==8 else 'nf4', double_quant=double_quant)
    assert b.group('weights', 'constants', 'rest')==sum(held.values())


def test_double_quantisation_saves_what_the_paper_says():
    one,two = (stored_terms([Linear('x', 64*256, 4, 7)], storage('nf4', d))[1].bytes for d in (False, True))
    assert (one-two)*8/(64*256*4*7)==0.373046875


# ---- adapters

@pytest.mark.parametrize('name,r,targets,dora', [('Llama-2-7B', 8, 'all-linear', False), ('Llama-2-7B', 16, 'all-linear', False), ('Llama-2-7B', 64, 'all-linear', False),
    ('Llama-2-7B', 8, ['q_proj', 'v_proj'], False), ('Llama-2-70B', 16, 'all-linear', False), ('Qwen2.5-7B', 16, ['q_proj', 'k_proj', 'down_proj'], False),
    ('Llama-3.2-1B', 5, 'all-linear', True), ('Qwen3-0.6B', 16, 'all-linear', False), ('Mistral-7B-v0.1', 1, ['gate_proj'], True), ('demo', 16, 'all-linear', True)])
def test_adapters_are_those_of_peft(name, r, targets, dora):
    import torch
    from peft import LoraConfig, get_peft_model
    a = find(name)
    model = meta_model(a)
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = get_peft_model(model, LoraConfig(r=r, target_modules=targets, use_dora=dora, task_type='CAUSAL_LM', init_lora_weights=True), low_cpu_mem_usage=True)
    trained,everything = model.get_nb_trainable_parameters()
    b = budget(a, r=r, target_modules=targets, use_dora=dora)
    assert (b.trainable, b.parameters)==(trained, everything)
    theirs = {}
    for n,p in model.named_parameters():
        if p.requires_grad: theirs[tuple(p.shape)] = theirs.get(tuple(p.shape), 0)+1
    ours = {}
    for s,c in adapter_shapes(target_linears(a, targets), r, dora): ours[s] = ours.get(s, 0)+c
    assert ours==theirs


def test_known_adapter_counts():
    assert [budget(LLAMA2, r=r).trainable for r in (8, 16, 64)]==[19_988_480, 39_976_960, 159_907_840]
    assert budget(LLAMA2, r=8, target_modules=['q_proj', 'v_proj']).trainable==4_194_304
    assert budget(LLAMA2, target_modules='attention-only')==budget(LLAMA2, target_modules=['o_proj', 'q_proj', 'k_proj', 'v_proj'])


def test_a_wrong_target_gets_its_neighbour():
    with pytest.raises(QLoRAError, match="Did you mean 'gate_proj'") as e: budget(LLAMA2, target_modules=['q_proj', 'gate_porj'])
    assert '\n' not in str(e.value) and e.value.errors[0].key=='lora.target_modules'
    with pytest.raises(QLoRAError, match='no linear layer'): budget(LLAMA2, target_modules=['lm_head'])


# ---- optimizers

SHAPES = [((16, 64), 2), ((64, 100), 1), ((300,), 2), ((4096,), 1), ((100, 401), 1), ((5000,), 1), ((16, 6250), 1)]


def state_bytes(optim, dtype, shapes):
    "The memory of a real optimizer after two steps; a storage counts once"
    import torch
    from transformers import Trainer, TrainingArguments
    cls,kw = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments('unused', optim=optim, use_cpu=True, bf16=False))
    params = [torch.nn.Parameter(torch.randn(s).to(getattr(torch, dtype))) for s,c in shapes for _ in range(c)]
    opt = cls(params, **kw)
    for _ in range(2):
        for p in params: p.grad = torch.randn_like(p)
        opt.step()
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for p in params for t in opt.state[p].values() if torch.is_tensor(t)}
    return sum(held.values())


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('optim', OPTIMIZER_STATE)
def test_state_of_real_optimizers(optim, dtype):
    shapes = SHAPES[:-1] if optim.startswith('paged_ademamix') else SHAPES
    real = state_bytes(optim, dtype, shapes)
    assert sum(t.bytes for t in optimizer_terms(shapes, optim, dtype, paging=False))==real
    assert sum(t.bytes for t in optimizer_terms(shapes, optim, dtype, paging=True))==real


@pytest.mark.filterwarnings('ignore')
def test_paged_ademamix_does_not_run_on_a_cpu():
    "bitsandbytes 0.50.2 forgets the fallback for its double buffer; when this fails, drop the exception above"
    with pytest.raises(RuntimeError, match='CPU-only'): state_bytes('paged_ademamix_32bit', 'float32', SHAPES[-1:])


def test_every_optimizer_of_the_config_is_priced(): assert set(OPTIMIZER_STATE)==set(OPTIMIZERS)


def test_what_is_paged():
    import inspect
    from bitsandbytes.optim.optimizer import Optimizer8bit
    assert 'p.numel() < 1e5' in inspect.getsource(Optimizer8bit.get_state_buffer)
    stay,paged = optimizer_terms([((10, 9999), 3), ((10, 10_000), 2)], 'paged_adamw_32bit')
    assert (stay.bytes, stay.pageable, paged.bytes, paged.pageable)==(8*3*99_990, False, 8*2*100_000, True)
    eight = optimizer_terms([((10, 10_000), 2)], 'paged_adamw_8bit')
    assert [t.bytes for t in eight]==[2*4*2*math.ceil(100_000/256)+2048, 2*2*100_000]
    assert not any(t.pageable for o in OPTIMIZER_STATE for t in optimizer_terms([((10, 10_000), 2)], o, paging=False))


def test_notes_about_paging():
    assert 'no adapter matrix' in budget(find('demo')).notes[1] and 'nothing on a CPU' in budget(LLAMA2, paging=False).notes[1]
    assert 'driver can move' in budget(LLAMA2).notes[1] and budget(LLAMA2, optim='adamw_torch').notes==(ON_TOP,)
    with pytest.raises(QLoRAError, match="Did you mean 'adamw_8bit'"): budget(LLAMA2, optim='adam_8bit')


def test_gradients_have_the_type_of_the_adapters():
    import torch
    for dtype in FLOATS:
        w = torch.nn.Linear(8, 4, bias=False, dtype=getattr(torch, dtype))
        w(torch.ones(1, 8, dtype=w.weight.dtype)).sum().backward()
        assert w.weight.grad.nbytes==SIZE[dtype]*32
    b = budget(LLAMA2, adapter_dtype='bfloat16')
    assert b.group('gradients')==b.group('adapters')==2*39_976_960


# ---- whole budgets

MIB = 2**20
# What an allocator on a T4 held after loading, in MiB: packed, scales and tables, the float32 rest with adapters of rank 32 on attention, the float16 base
# without quantisation, gradients, AdamW. From fitcheck-llm 0.3.1, data/measurements/t4-sweep-2026-09-15.json.
T4_ROWS = {'Qwen2.5-1.5B': (624.75, 78.105712890625, 924.052734375, 2944.4013671875, 33.25, 66.5),
    'SmolLM2-1.7B': (768.0, 96.01025390625, 432.3828125, 3264.19140625, 48.0, 96.0), 'SmolLM2-135M': (50.625, 6.3409423828125, 122.196533203125, 256.5670166015625, 14.0625, 28.125),
    'SmolLM2-360M': (150.0, 18.763671875, 205.238037109375, 690.1190185546875, 25.0, 50.0),
    'TinyLlama-1.1B': (462.0, 57.7593994140625, 534.7265625, 2098.17578125, 34.375, 68.75)}


@pytest.mark.parametrize('name', T4_ROWS)
def test_against_a_gpu(name):
    "To the byte, except the optimizer's step counters, which PyTorch keeps on the host"
    packed,scales,rest,base,grads,adam = (round(x*MIB) for x in T4_ROWS[name])
    kw = dict(r=32, target_modules='attention-only', optim='adamw_torch')
    q = budget(find(name), double_quant=False, dtype='float32', **kw)
    assert (q.group('weights'), q.group('constants'), q.group('rest', 'adapters'), q.group('gradients'))==(packed, scales, rest, grads)
    steps = 4*sum(c for _,c in adapter_shapes(target_linears(find(name), 'attention-only'), 32))
    assert q.group('optimizer')==adam+steps and budget(find(name), 'lora', 'float16', **kw).group('weights')==base


def test_full_fine_tuning_is_16_bytes_a_parameter():
    import torch
    b = budget(LLAMA2, 'full', dtype='float32', optim='adamw_torch')
    assert b.total==16*6_738_415_616+4*291 and b.trainable==b.parameters==6_738_415_616
    a = arch()
    params = [torch.nn.Parameter(torch.zeros(t.shape)) for t in a.tensors for _ in range(t.count)]
    opt = torch.optim.AdamW(params)
    for p in params: p.grad = torch.ones_like(p)
    opt.step()
    held = sum(p.nbytes+p.grad.nbytes+sum(s.nbytes for s in opt.state[p].values()) for p in params)
    assert held==budget(a, 'full', dtype='float32', optim='adamw_torch').total


def test_rules_of_thumb():
    assert [t.bytes for t in rules_of_thumb(7e9)]==[14*10**9, 84*10**9, 112*10**9]
    assert all(t.source for t in rules_of_thumb())


def value(formula): return eval(re.sub(r'\s[a-z][\w\s-]*?(?= ×)', '', re.sub(r' of (64|256) ?(scales)?(?= ×)', '', formula.replace(',', ''))).replace('×', '*').replace(' B', ''))


archs = st.builds(arch, hidden=st.integers(1, 40).map(lambda x: 64*x), layers=st.integers(1, 12), heads=st.integers(1, 16), kv=st.integers(1, 16),
    dim=st.integers(1, 32).map(lambda x: 8*x), ff=st.integers(1, 40).map(lambda x: 64*x), vocab=st.integers(1, 60_000), tie_word_embeddings=st.booleans(),
    block=st.sampled_from([None, FAMILIES['qwen3']]), biases=st.sampled_from([(), ('q_proj', 'k_proj', 'v_proj')]))
types,optims = st.sampled_from(FLOATS),st.sampled_from(list(OPTIMIZER_STATE))
choices = dict(r=st.integers(1, 300), use_dora=st.booleans(), stored=st.sampled_from(list(BITS)), double_quant=st.booleans(), optim=optims, dtype=types,
    adapter_dtype=types, paging=st.booleans(), 
    target_modules=st.sampled_from(['all-linear', 'attention-only', ('down_proj',)]))


@settings(max_examples=150, deadline=None)
@given(archs, st.fixed_dictionaries(choices))
def test_properties(a, kw):
    b = budget(a, **kw)
    assert all(type(t.bytes) is int and t.bytes>=0 for t in b.terms) and b.total==sum(t.bytes for t in b.terms) and 0<=b.pageable<=b.total
    assert all(value(t.formula)==t.bytes for t in b.terms), [t.formula for t in b.terms]
    assert b.notes[0]==ON_TOP and b.trainable<=b.parameters


@settings(max_examples=100, deadline=None)
@given(archs, st.fixed_dictionaries(choices))
def test_monotone(a, kw):
    b = budget(a, **kw)
    if '8bit' not in kw['optim']: assert budget(a, **{**kw, 'r': kw['r']+1}).total>=b.total
    assert budget(replace(a, num_hidden_layers=a.num_hidden_layers+1), **kw).total>b.total
    assert budget(a, **{**kw, 'use_dora': True}).total>=budget(a, **{**kw, 'use_dora': False}).total
    assert budget(a, **{**kw, 'paging': True}).total==budget(a, **{**kw, 'paging': False}).total


def test_methods_are_ordered_for_every_preset():
    for a in UNIQUE:
        full,lora,q8,q4,q4dq = (budget(a, 'full', dtype='float32', optim='adamw_torch'), budget(a, 'lora', 'bfloat16'), budget(a, stored='int8'), budget(a, double_quant=False), budget(a))
        assert full.total>lora.total>q8.total>q4.total>q4dq.total
        assert count(adapter_shapes([l for l in a.linears if l.adapted], 3))==q4.trainable*3//16


def test_a_wrong_method_is_one_line():
    with pytest.raises(QLoRAError, match="Did you mean 'lora'"): budget(LLAMA2, 'lra')
    with pytest.raises(QLoRAError, match="Did you mean 'nf4'"): budget(LLAMA2, 'lora', 'nf3')


def test_shown_in_both_forms():
    b = budget(LLAMA2)
    for text in (str(b), b._repr_html_()): assert all(x in text for x in ('3,238,002,688', 'not the peak', 'total', 'QLoRA, nf4 with double quantisation'))


def test_no_torch_for_a_budget():
    code = "import sys; from qlora_nb.planning.memory import budget; from qlora_nb.facts.models import find; str(budget(find('demo'))); print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'


# ---- the peak of a step

BENCH = Path(__file__).parent.parent/'benchmarks'
def published():
    spec = importlib.util.spec_from_file_location('published_memory', BENCH/'published_memory.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_published_row_in_an_unknown_unit_is_skipped(): assert published().skip(dict(value=5, unit='furlong')).startswith("unknown unit 'furlong', not one of ")

def test_published_measurements(tmp_path, capsys):
    "Median, 90th percentile and worst error of tier A, and the verdicts of the other tiers"
    p = published()
    assert p.main([str(BENCH/'data'/'measured_memory.json'), '--json', str(tmp_path/'out.json')])==0
    rows = {r['id']: r for r in json.loads((tmp_path/'out.json').read_text())}
    source = json.loads((BENCH/'data'/'measured_memory.json').read_text())
    assert set(rows)=={r['id'] for r in source} and set(next(iter(rows.values())))=={'id', 'measured_bytes', 'predicted_bytes', 'error', 'verdict', 'skipped'}
    a = p.spread([rows[r['id']]['error'] for r in source if r['tier']=='A'])
    assert a['n']==62 and a['median']<.005 and a['p90']<.02 and a['worst']<.02
    of = {f: p.spread([rows[r['id']]['error'] for r in source if r['tier']=='A' and p.family(r['source'])==f]) for f in map(p.family, (r['source'] for r in source if r['tier']=='A'))}
    cells = [f"{100*e['median']:.2f} / {100*e['p90']:.2f} / {100*e['worst']:.2f} %" for e in (*of.values(), a)]
    assert f"| qlora_nb, formula | 62 | {' | '.join(cells)} |" in (BENCH.parent/'README.md').read_text()
    c = [(r['fits'], rows[r['id']]) for r in source if r['tier']=='C']
    assert [o['skipped'] for _,o in c if o['skipped']]==['ran on 2 GPUs, and the row does not say how they share a run']
    assert sum(fits==(o['verdict']=='fits') for fits,o in c if not o['skipped'])>=11
    assert 'Within the limits' in capsys.readouterr().out


@pytest.mark.parametrize('python', ['python3.12', 'python3.13'])
def test_the_walk_is_the_same_in_every_python(python):
    "The step counts references, which are CPython's own affair; planning needs nothing but the standard library"
    code = """if True:
        from qlora_nb.planning.estimate import estimate
        from qlora_nb.facts.models import find
        from qlora_nb.simulation.job import STACKS, make_job
        jobs = [make_job(find(m), stack=s, batch=2, length=256, lora_dropout=.05, checkpointing=c, accumulation=a) for m in ('demo', 'Llama-2-7B', 'Qwen2.5-0.5B')
            for s in STACKS.values() for c in (True, False) for a in (1, 4)]
        print([estimate(j).tensors for j in jobs])"""
    env = {**os.environ, 'PYTHONPATH': str(BENCH.parent)}
    def said(program, code=code): return subprocess.run([program, '-c', code], cwd=BENCH.parent, capture_output=True, text=True, env=env)
    if not shutil.which(python) or said(python, '').returncode: pytest.skip(f'no {python} here')
    other = said(python)
    assert other.returncode==0, other.stderr
    assert other.stdout==said(sys.executable).stdout


def test_the_predictor_sees_no_answer():
    p = published()
    row = json.loads((BENCH/'data'/'measured_memory.json').read_text())[0]
    seen = p.visible(row)
    assert not set(seen)&{'id', 'source', 'value', 'value_gib', 'unit', 'also', 'notes', 'fits'} and 'source' not in seen['stack']
    assert p.predict(seen)==p.predict(p.visible(row | dict(value=1, also=None, notes='', source='x')))


def test_rows_that_cannot_be_read_are_skipped_and_count(tmp_path):
    p = published()
    row = json.loads((BENCH/'data'/'measured_memory.json').read_text())[0]
    (tmp_path/'rows.json').write_text(json.dumps([row, row | dict(id='odd', model_config=dict(row['model_config'], model_type='mambo'))]))
    assert p.main([str(tmp_path/'rows.json'), '--json', str(tmp_path/'out.json')])==1
    good,odd = json.loads((tmp_path/'out.json').read_text())
    assert not good['skipped'] and 'mambo' in odd['skipped'] and odd['predicted_bytes'] is None


def test_the_figures_that_articles_quote():
    p = published()
    row = next(r for r in json.loads((BENCH/'data'/'measured_memory.json').read_text()) if r['id']=='litgpt-restab-Llama2-7B-bnb.nf4-mb1')
    measured,e = p.measured(row)/1e9,estimate(p.job_of(p.visible(row)))
    assert measured==14.14 and 13<e.tensors/1e9<14.2
    better = estimate(make_job(LLAMA2, r=8, target_modules=('q_proj', 'v_proj'), length=1304))
    assert better.tensors/1e9<5
    assert [t.bytes for t in rules_of_thumb(7e9)][1]==84*10**9 and round(budget(LLAMA2, 'full', dtype='float32', optim='adamw_torch').total/1e9, 1)==107.8


TINY = dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=320, vocab_size=160, head_dim=32, max_position_embeddings=64)
FAMILY = {k: {} for k in ('llama', 'mistral', 'qwen2', 'qwen3', 'granite', 'gemma', 'gemma3_text')}
FAMILY |= dict(smollm3=dict(pad_token_id=0), glm=dict(pad_token_id=0), glm4=dict(pad_token_id=0), mixtral=dict(num_local_experts=4),
    qwen3_moe=dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True),
    gpt_oss=dict(num_local_experts=4, num_experts_per_tok=2, pad_token_id=0))
FAMILY |= dict(gemma2=dict(attn_logit_softcapping=None, final_logit_softcapping=None), opt=dict(ffn_dim=320, dropout=0.),
    phi3=dict(num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2), phi=dict(num_key_value_heads=4, partial_rotary_factor=.5),
    gpt_neox=dict(rotary_pct=.25), falcon=dict(ffn_hidden_size=320))
LATENT = dict(num_key_value_heads=4, q_lora_rank=48, kv_lora_rank=40, qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=32,
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, first_k_dense_replace=1)
LLAMA4 = dict(model_type='llama4_text', num_local_experts=4, intermediate_size_mlp=256, pad_token_id=0)
GEMMA4 = dict(model_type='gemma4_text', global_head_dim=64, num_global_key_value_heads=1, hidden_size_per_layer_input=0)
FEW = dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=64)
FAMILY |= dict(deepseek_v2=LATENT, deepseek_v3=LATENT | dict(n_group=2, topk_group=1), glm4_moe_lite=LATENT)
FAMILY |= {'deepseek_v3, queries made directly': LATENT | dict(model_type='deepseek_v3', q_lora_rank=None, n_group=2, topk_group=1, rope_interleave=False, attention_bias=True)}
def kinds_of(kind, layers): # The kind of layer that is added by one more of them
    sliding = ['sliding_attention']*(layers-1)+['full_attention']
    full = ['sliding_attention']+['full_attention']*(layers-1)
    return {'llama4_text': LLAMA4 | dict(no_rope_layers=[1]*layers), 'llama4_text, plain': LLAMA4 | dict(no_rope_layers=[1]+[0]*(layers-1)),
        'llama4_text, dense': LLAMA4 | dict(no_rope_layers=[1]*layers, moe_layers=[0]), 'gemma4_text': GEMMA4 | dict(layer_types=sliding),
        'gemma4_text, full': GEMMA4 | dict(layer_types=full), 'gemma4_text, keys as values': GEMMA4 | dict(layer_types=full, attention_k_eq_v=True),
        'gemma4_text, experts': GEMMA4 | FEW | dict(layer_types=sliding),
        'qwen3_moe, dense': FAMILY['qwen3_moe'] | dict(model_type='qwen3_moe', mlp_only_layers=list(range(1, layers)))}.get(kind)
MIXED = ('llama4_text', 'llama4_text, plain', 'llama4_text, dense', 'gemma4_text', 'gemma4_text, full', 'gemma4_text, keys as values',
    'gemma4_text, experts', 'qwen3_moe, dense')

def tiny(kind, layers):
    drop = dict(phi3=('head_dim',), phi=('head_dim',), gpt_neox=('head_dim', 'num_key_value_heads'), opt=('head_dim', 'num_key_value_heads'), falcon=('head_dim', 'num_key_value_heads'))
    c = {**TINY, 'model_type': kind, **(FAMILY[kind] if kind in FAMILY else kinds_of(kind, layers)), 'num_hidden_layers': layers}
    return {k: v for k,v in c.items() if k not in drop.get(kind, ('head_dim',) if 'kv_lora_rank' in c else ())}


def really_kept(kind, layers, attention, method):
    "Bytes that autograd keeps in a forward pass of the real model, parameters left out"
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    c = tiny(kind, layers)
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(**c), attn_implementation=attention).float()
    m.config.use_cache = False
    if method=='lora':
        m = get_peft_model(m, LoraConfig(r=4, target_modules=from_config(c, kind).linear_names, task_type='CAUSAL_LM'))
        m.enable_input_require_grads()
    m.train()
    own,saved = {p.untyped_storage().data_ptr() for p in [*m.parameters(), *m.buffers()]},weakref.WeakSet()
    class Held:
        def __init__(self, tensor): self.store = tensor.untyped_storage()
    def pack(t):
        held = Held(t)
        saved.add(held)
        return t.detach(),held # What was kept for a branch that nobody needs goes with it
    x = torch.randint(3, 160, (2, 16))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[0]): out = m(input_ids=x, labels=x)
    stores = {h.store.data_ptr(): h.store.nbytes() for h in saved}
    return sum(n for address,n in stores.items() if address not in own)


def counted(kind, layers, attention, method):
    a = from_config(tiny(kind, layers), kind)
    kw = dict(r=4, target_modules=tuple(a.linear_names)) if method=='lora' else {}
    j = make_job(a, method, 'float32', dtype='float32', **kw, batch=2, length=16, attention=attention, checkpointing=False, device='cpu', stack=stack('raw', upcast='none'))
    s = Step(j)
    s.heap.begin('forward')
    _inputs(s, 0)
    held = _forward(s)
    return s.heap.now


@pytest.mark.parametrize('kind', [*FAMILY, *MIXED])
@pytest.mark.parametrize('attention,method', [('eager', 'lora'), ('sdpa', 'lora'), ('eager', 'full')])
def test_a_layer_keeps_what_the_real_one_keeps(kind, attention, method):
    "To the byte, family by family; Falcon keeps a scalar in each layer besides"
    if (kind, attention) in (('gemma2', 'sdpa'), ('gpt_oss', 'sdpa')): pytest.skip('transformers refuses it')
    ours,theirs = [f(kind, 4, attention, method)-f(kind, 3, attention, method) for f in (counted, really_kept)]
    assert ours==theirs-16*(kind=='falcon')


of_lora = dict(stored=st.sampled_from(['nf4', 'fp4', 'int8', None]), double_quant=st.booleans(), r=st.integers(1, 80), use_dora=st.booleans(),
    lora_dropout=st.sampled_from([0., .1]))
of_step = dict(batch=st.integers(1, 4), length=st.integers(1, 70), accumulation=st.integers(1, 2), checkpointing=st.booleans(),
    attention=st.sampled_from(['eager', 'sdpa', 'flash_attention_2']), optim=st.sampled_from(['adamw_torch', 'adamw_torch_fused', 'paged_adamw_32bit', 'sgd']),
    dtype=st.sampled_from(['bfloat16', 'float16']), learned=st.sampled_from([1., .3]), device=st.sampled_from(['cuda', 'cpu']), capability=st.sampled_from([(7, 5), (8, 0), (9, 0)]))
steps = st.fixed_dictionaries(of_lora | of_step) | st.fixed_dictionaries(dict(method=st.just('full')) | of_step)

def job_of(a, s, kw): # `stored` None: an unquantised base, in the dtype of the products
    stored = dict(stored=kw['dtype']) if kw.get('stored', 1) is None else {}
    return make_job(a, stack=s, **(kw | stored))

stacks = st.builds(lambda n,**kw: stack(n, **kw), st.sampled_from(list(STACKS)), loss=st.sampled_from(['full_logits', 'full_logits_shifted', 'fused', 'learned', 'liger']),
    use_reentrant=st.booleans(), outputs_kept=st.booleans(), inputs_kept=st.booleans(), autocast=st.sampled_from([None, 'bfloat16']), upcast=st.sampled_from(['none', 'norms', 'all']))
families = st.sampled_from([from_config(tiny(k, 3), k) for k in FAMILY])


def formula_value(t): return eval(re.sub(r'(?<=\d)\s[a-z][\w\s-]*?(?= ×)', '', re.sub(r' of (64|256) ?(scales)?(?= ×)', '', t.formula.replace(',', ''))).replace('×', '*').replace(' B', ''))


@settings(max_examples=50, deadline=None)
@given(st.one_of(archs, families), steps, stacks)
def test_an_estimate_adds_up(a, kw, s):
    e = estimate(job_of(a, s, kw))
    assert e.tensors==sum(t.bytes for t in e.terms)==e.phases[e.binding]==max(e.phases.values()) and not any(t.pageable for t in e.terms)
    assert all(type(t.bytes) is int and t.bytes>=0 for t in e.terms) and e.paged>=0 and all(b>=0 for b in e.phases.values())
    assert all(formula_value(t)==t.bytes for t in e.terms), [t.formula for t in e.terms if formula_value(t)!=t.bytes]


@settings(max_examples=50, deadline=None)
@given(st.one_of(archs, families), steps, stacks)
def test_an_estimate_is_monotone(a, kw, s):
    job = job_of(a, s, kw)
    def size(**changes):
        e = estimate(job.changed(**changes))
        return e.tensors+e.paged
    now = size()
    assert size(batch=job.batch+1)>=now and size(length=job.length+1)>=now and (job.method is FULL or size(r=job.section.r+1)>=now)
    assert size(arch=replace(a, num_hidden_layers=a.num_hidden_layers+1))>=now


def test_double_quantisation_saves_on_real_layers_only():
    one,two = (estimate(make_job(LLAMA2, double_quant=d)) for d in (False, True))
    sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2, vocab_size=64)
    small = Job(from_config(dict(model_type='llama', **sizes), 'small'))
    assert one.group('constants')-two.group('constants')>.29e9 and estimate(small).group('constants')>estimate(small.changed(double_quant=False)).group('constants')


def test_what_binds_and_when():
    full = estimate(make_job(LLAMA2, 'full', optim='adamw_torch', stack=stack('trl', autocast=None)))
    assert full.binding=='optimizer' and round(full.tensors/(2*LLAMA2.num_parameters), 2)==5.0
    assert estimate(Job(find('Qwen2.5-0.5B'), stack=stack('raw'), batch=4)).group('loss')>estimate(Job(find('Qwen2.5-0.5B'), batch=4)).group('loss')
    assert estimate(Job(LLAMA2, accumulation=2)).tensors>estimate(Job(LLAMA2)).tensors
    held = [estimate(make_job(LLAMA2, stored=q, stack=stack('trl', use_reentrant=r))).group('layer', 'attention', 'activations', 'workspace') for q in ('int8', 'nf4') for r in (False, True)]
    assert held[0]>3*held[1] and held[2]<held[0]/3


def test_encoder_decoders_have_states_only():
    e = estimate(Job(find('google/flan-t5-base')))
    assert 'encoder-decoder' in e.notes[0] and e.tensors==e.phases['optimizer'] and e.phases['forward']==0


def test_families_that_were_not_measured_say_so():
    assert any('not held against measurements' in n for n in estimate(Job(find('microsoft/phi-2'))).notes)
    assert not any('not held against' in n for n in estimate(Job(LLAMA2)).notes)


def test_an_estimate_needs_nothing_heavy():
    code = """import sys
from qlora_nb.planning.estimate import estimate
from qlora_nb.facts.models import find
from qlora_nb.simulation.job import Job, detect
str(estimate(Job(find('demo'), stack=detect())))
print([m for m in ('torch', 'numpy', 'transformers', 'trl', 'peft') if m in sys.modules])"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'
