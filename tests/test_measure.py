"What a step takes, measured: the same bytes as the plan where both count bytes, and the band of the next plan"
from types import SimpleNamespace as S
import pytest
from qlora_nb import parse, plan
from qlora_nb.planning.fit import CONTEXT, PROCESS
from qlora_nb.facts.machine import detect
from qlora_nb.facts.hardware import gpu, precision
from qlora_nb.training.measure import Measured, against, beside, held, meter
from qlora_nb.planning.bands import seen
from qlora_nb.store.checkpoints import events
from qlora_nb.store.folder import read_about, write_about
from qlora_nb.training.start import train
from test_resume import ROWS, cell

CPU = S(kind='cpu')

@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['as chosen', 'float32'])
@pytest.mark.parametrize('quantization', ['bits: 4', 'bits: 4, bnb_4bit_use_double_quant: false', 'bits: 8', 'bits: none'])
def test_what_stays_is_what_the_plan_says(quantization, dtype, monkeypatch):
    "With the compute dtype of this CPU, and with that of a CPU without AVX512-BF16"
    if dtype=='float32': monkeypatch.setenv('QLORA_NB_CPU_DTYPE', 'float32')
    from peft import get_peft_model
    from qlora_nb.training.loading import load_base, upcast_adapters
    from qlora_nb.methods.lora import lora_config
    from qlora_nb.quiet import quiet
    from qlora_nb.planning.memory import resident
    config = parse(f'model: demo\ndata: {{train: demo}}\nquantization: {{{quantization}}}')
    with quiet():
        base = load_base('demo', config, detect(), precision(detect()).compute)
        model = get_peft_model(base, lora_config(config.lora, base))
        upcast_adapters(model, 'float32')
    planned,real = {},held(model)
    for t in resident(plan(config, device=detect()).job).terms: planned[t.group] = planned.get(t.group, 0)+t.bytes
    rotary = {k: real[k]-planned.get(k, 0) for k in ('weights', 'constants', 'rest', 'adapters')} # Its frequencies are in no checkpoint
    assert rotary.pop('weights' if 'none' in quantization else 'rest')==256 and not any(rotary.values())

def test_a_meter_is_quiet_and_counts_this_thread(capfd):
    import threading, torch
    out = {}
    def work():
        with meter(CPU) as m:
            m.phase('forward')
            y = torch.nn.Linear(256, 1024)(torch.randn(8, 256, requires_grad=True)).sum()
            m.phase('backward')
            y.backward()
        out.update(m.phases, process=m.process)
    t = threading.Thread(target=work)
    t.start()
    t.join()
    assert 4*(256*1024+8*1024)<out['forward']<out['backward'] and out['process']>100*2**20
    assert capfd.readouterr().err==''

@pytest.mark.parametrize('there', ['in this thread', 'in another'])
def test_a_person_who_profiles_the_cell_keeps_kernel_and_profile(folder, tmp_path, there):
    "With two of PyTorch's newer profiles in two threads, the process ends"
    from torch.profiler import profile
    with profile(profile_memory=True) as p:
        if there=='in another': run = train(cell(folder, tmp_path, max_steps=2), ROWS, name='run')
        else:
            with meter(CPU) as m: m.phase('forward')
            assert m.phases=={}
    assert p.key_averages() is not None
    if there=='in another': assert run.status=='finished' and run.memory.tried and run.memory.against

def test_a_pytorch_without_that_profiler_trains_and_says_so(folder, tmp_path, monkeypatch):
    import torch.autograd.profiler_legacy as legacy
    monkeypatch.delattr(legacy, '_enable_profiler_legacy')
    run = train(cell(folder, tmp_path, max_steps=1), ROWS, name='run')
    assert run.status=='finished' and run.memory.tried is None and any('could not be measured' in n for n in run.notes) and not run.memory.against

def test_what_is_freed_inside_does_not_count_below_zero():
    import torch
    old = [torch.empty(2**20) for _ in range(4)]
    with meter(CPU, 16*2**20) as m:
        m.phase('forward')
        old.clear()
        x = torch.empty(2**18)
    assert m.phases==dict(forward=17*2**20)

def test_an_error_inside_comes_out():
    with pytest.raises(RuntimeError, match='^mine$'), meter(CPU) as m:
        m.phase('forward')
        raise RuntimeError('mine')
    assert m.phases=={}

def test_a_gpu_is_asked_phase_by_phase(monkeypatch):
    "The order of calls to a GPU's allocator; a stand-in for the figures that only a GPU has"
    import torch
    peaks,said = iter([7, 9, 8]),[]
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: said.append('anew'))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, 'max_memory_reserved', lambda: 20)
    with meter(S(kind='cuda')) as m:
        for p in ('forward', 'backward', 'optimizer'): m.phase(p)
    assert m.phases==dict(forward=7, backward=9, optimizer=8) and m.reserved==20 and len(said)==3

def test_a_run_is_held_against_its_plan(folder, tmp_path):
    run = train(cell(folder, tmp_path, max_steps=2), ROWS, name='run')
    rows = {name: (p,n) for name,p,n in run.memory.against}
    assert rows['weights'][0]==rows['weights'][1] and rows['optimizer state'][0]<=rows['optimizer state'][1]
    planned,real = rows['peak, backward']
    assert run.memory.tried==max(n for k,(_,n) in rows.items() if k.startswith('peak')) and planned==pytest.approx(real, rel=.1) and real<2**30
    said = next(e for e in events(run.folder) if e['event']=='preflight')
    assert said['phases']['backward']==real and said['process']>real and 'off by' in (run.folder/'report.md').read_text()
    assert read_about(run.folder)['measured']['terms']==[list(r) for r in run.memory.against]

def test_the_next_plan_has_the_band_of_the_last_run(folder, tmp_path):
    text,device = cell(folder, tmp_path, max_steps=2),detect()
    def planned(): return plan(parse(text), device=device)
    first = planned()
    run = train(text, ROWS, name='run')
    then,b = planned(),read_about(run.folder)['measured']['beside']
    quarter = (PROCESS[1]-PROCESS[0])/4
    def of(p): return [n-p.tensors_bytes for n in p.device_bytes]
    assert of(first)==list(PROCESS) and of(then)==[max(0, b-quarter), b+quarter]
    assert b==pytest.approx(run.memory.peak, rel=.5) and any(n.startswith('What lies beside the tensors is taken from 1 run on') for n in then.notes)
    assert plan(parse(text), gpu='T4').machine.beside is None
    assert all(c.fit.device[0]-c.fit.reserved[0]-c.fit.paged==CONTEXT[0] for c in then.gpu_verdicts if c.device.kind=='cuda')

def test_a_gpu_takes_its_band_from_shares(tmp_path):
    p = plan('model: Llama-2-7B\ndata: {train: rows.jsonl}\noutput: {output_dir: %s}' % tmp_path, gpu='T4')
    reserved = p.reserved_bytes[0]+2**28
    (tmp_path/'one').mkdir()
    share = beside(p, Measured(dict(p.phases), {}, reserved))
    write_about(tmp_path/'one', measured=dict(device='Tesla T4', attention=p.job.attention, beside=share))
    again = plan(p.config, gpu='T4')
    assert again.reserved_bytes[0]<reserved<again.reserved_bytes[1] and again.tensors_bytes==p.tensors_bytes
    assert plan(p.config, gpu='L4').machine.beside is None

SILENT = ('{', '[]', '{"format": 99}', '{"format": 1}', '{"format": 1, "measured": {"device": "T4", "attention": "sdpa", "beside": "?"}}')

@pytest.mark.parametrize('text', SILENT)
def test_a_folder_that_says_nothing_is_passed_over(tmp_path, text):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'run.json').write_text(text)
    assert seen(tmp_path, gpu('T4'), 'sdpa')==(None, 0)

def test_no_figures_no_table(): assert against(None, Measured({}, {}))==[] and beside(S(tensors_bytes=5), Measured({}, {})) is None
