"The trace: what must hold whatever the numbers are"
import pytest, random
from dataclasses import replace

from qlora_nb.errors import QLoRAError
from qlora_nb.planning.estimate import estimate
from qlora_nb.facts.models import find, from_config
from qlora_nb.facts.libraries import known
from qlora_nb.simulation.job import detect, make_job, stack
from qlora_nb.simulation.allocator import CATEGORIES, Log, Pool
from qlora_nb.simulation.trace import trace

SHAPE = dict(model_type='llama', hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=512)
def arch(**changes): return from_config({**SHAPE, **changes}, 'tiny')
JOB = make_job(arch(), r=8, batch=2, length=64, optim='adamw_torch', stack=stack('raw'))

def peak(**changes): return trace(JOB.changed(**changes)).tensors

def test_grows():
    base = peak()
    for changes in (dict(batch=4), dict(length=128), dict(r=32), dict(arch=arch(num_hidden_layers=3))): assert base<peak(**changes), changes

@pytest.mark.parametrize('job', [JOB, JOB.changed(stack=stack()), JOB.changed(method='full'), JOB.changed(stored='bfloat16', checkpointing=False)], ids=['raw', 'trl', 'full', 'lora'])
def test_components(job):
    t = trace(job)
    assert set(t.components)==set(CATEGORIES) and min(t.components.values())>=0
    assert sum(t.components.values())==t.tensors==max(t.phases.values())==t.phases[t.binding]
    assert t.tensors<=t.reserved[0]<=t.reserved[1]

def slow(**changes): return pytest.param(changes, marks=pytest.mark.slow)

@pytest.mark.parametrize('changes', [{}, slow(checkpointing=False), slow(stack=stack(), accumulation=4), slow(method='full', attention='eager')],
    ids=['raw', 'no checkpoints', 'accumulated', 'full'])
def test_extrapolation(changes):
    job = JOB.changed(arch=arch(num_hidden_layers=4), **changes)
    two,full = trace(job),trace(job, 'all')
    assert two.layers==3 and full.layers==4
    assert two.tensors==pytest.approx(full.tensors, rel=.001)
    for p in two.phases: assert two.phases[p]==pytest.approx(full.phases[p], rel=.001)

@pytest.mark.slow
def test_stacks_differ():
    base = peak()
    assert peak(stack=stack('raw', outputs_kept=False))<base<peak(checkpointing=False)
    assert peak(attention='eager', length=256)>peak(length=256)

@pytest.mark.parametrize('device,dtype', [('cuda', 'float16'), ('cuda', 'float32'), ('cpu', 'bfloat16'), ('cpu', 'float32')])
def test_without_trl_the_tested_stack_is_assumed(device, dtype, monkeypatch):
    "A plan must not change by gigabytes with what is installed where it is made"
    installed = detect(device, dtype)
    monkeypatch.setattr('qlora_nb.facts.libraries.installed', lambda package: '')
    monkeypatch.setattr('qlora_nb.simulation.job.known', known.__wrapped__)
    assumed = detect.__wrapped__(device, dtype)
    assert replace(assumed, why=())==replace(installed, why=()) and 'planned for' in assumed.why[0]

def test_accumulation():
    few,many = (trace(JOB.changed(r=64, accumulation=n)) for n in (1, 8))
    trained = many.components['gradients']
    assert trained>few.components['gradients'] and 0<many.phases['forward']-few.phases['forward']<=trained

def test_plain_attention():
    "PyTorch's plain attention computes 16-bit inputs in float32; going backward the softmax and two more tables are there, and one in the kernel"
    t = trace(JOB.changed(stack=stack(loss='learned', kernel='math'), learned=.1, length=256))
    assert t.binding=='backward' and t.components['layer activations']>3*(2*4*256*256*4)

@pytest.mark.parametrize('changes', [dict(stored='int8'), dict(stored='fp4', double_quant=False), dict(lora_dropout=.1), dict(device='cpu'),
    dict(optim='adamw_8bit'), dict(optim='paged_adamw_32bit'), dict(optim='adafactor'), dict(stack=stack('raw', use_reentrant=True)),
    dict(stack=stack(loss='learned'), learned=.5), dict(stack=stack('raw', loss='full_logits_shifted')), dict(capability=(7, 5), dtype='float16'),
    dict(attention='flash_attention_2'), dict(dtype='float16', attention='eager')], ids=lambda c: ' '.join(map(str, list(c.values())[:1]))[:30])
def test_runs(changes):
    t = trace(JOB.changed(**changes))
    assert t.tensors>0 and 'Peaks:' in str(t) and '<table' in t._repr_html_()

@pytest.mark.slow
@pytest.mark.parametrize('changes', [dict(), dict(lora_dropout=.05), dict(lora_dropout=.05, attention='eager'), dict(checkpointing=True), dict(learned=.3)], ids=str)
def test_formula_on_a_cpu(changes):
    "The dropout of a CPU keeps its factors in the input's type, four times what a GPU's mask takes"
    kw = dict(batch=4, length=96, device='cpu', optim='adamw_torch', checkpointing=False, stack=detect('cpu'))
    job = make_job(find('demo'), **(kw | changes))
    assert estimate(job).tensors==pytest.approx(trace(job).tensors, rel=.03)

def test_paged():
    big = JOB.changed(arch=arch(hidden_size=1024), r=128, optim='paged_adamw_32bit')
    t,plain = trace(big),trace(big.changed(optim='adamw_torch'))
    assert 0<t.paged and t.components['optimizer state']+t.paged==pytest.approx(plain.components['optimizer state'], rel=.01)

def test_labels():
    few,all_ = (peak(stack=stack(loss='learned'), learned=s, arch=arch(vocab_size=8192)) for s in (.1, 1.))
    assert few<all_

@pytest.mark.parametrize('changes,said', [(dict(attention='flash'), 'flash_attention_2'), (dict(optim='adamw_9bit'), 'adamw_8bit'),
    (dict(stack=stack(loss='liger')), 'cannot be traced'), (dict(batch=0), 'at least 1'), (dict(use_dora=True), 'DoRA'), (dict(device='cpu', attention='flash_attention_2'), 'GPU')])
def test_refused(changes, said):
    with pytest.raises(QLoRAError) as e: trace(JOB.changed(**changes))
    assert said in str(e.value) and '\n' not in str(e.value)

def test_nothing_left_behind():
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    before,asked = set(ALL_ATTENTION_FUNCTIONS),torch.is_autocast_enabled
    trace(JOB.changed(stack=stack()))
    with pytest.raises(QLoRAError): trace(JOB.changed(optim='nonsense'))
    assert set(ALL_ATTENTION_FUNCTIONS)==before and torch.is_autocast_enabled is asked
    x = torch.ones(3, requires_grad=True)
    (x*2).sum().backward()
    assert x.grad.tolist()==[2, 2, 2]

def test_threads():
    "Two traces at once give what each gives alone, and leave nothing exchanged"
    import torch
    from concurrent.futures import ThreadPoolExecutor
    asked,jobs = torch.is_autocast_enabled,[JOB.changed(stack=stack()), JOB.changed(stack=stack(), batch=4)]
    with ThreadPoolExecutor(2) as pool: found = [t.tensors for t in pool.map(trace, jobs)]
    assert found==[trace(j).tensors for j in jobs] and torch.is_autocast_enabled is asked

def test_pool():
    "Blocks handed out never overlap, and all of them come back joined"
    pool,held,rng = Pool(True),[],random.Random(0)
    for _ in range(2000):
        if held and rng.random()<.5: pool.give(held.pop(rng.randrange(len(held))))
        else: held.append(pool.take(512*rng.randint(1, 400)))
        spans = sorted((b[1]+b[2], b[1]+b[2]+b[0]) for b in [*held, *pool.free])
        assert spans[0][0]==0 and spans[-1][1]==pool.reserved and all(a[1]==b[0] for a,b in zip(spans, spans[1:]))
    for b in held: pool.give(b)
    assert all(n==2**21 for n,_,_ in pool.free) and len(pool.free)*2**21==pool.reserved

def test_log():
    log = Log()
    log.mark('forward', 'head')
    log.free(log.alloc(1))
    assert log.blocks==[[512, 'logits and loss']] and [s for _,s,_ in log.events]==[1, -1]
