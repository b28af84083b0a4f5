"Facts about the machine, read from stand-ins; no test here needs or uses a GPU"
import json, subprocess, sys
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace as NS

import pytest

from qlora_nb.facts import hardware
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.hardware import Device, cpu, detect, glance, gpu, gpus, pick_gpu, precision
from qlora_nb.render import GiB

T4 = {'index': '0', 'uuid': 'GPU-a', 'name': 'Tesla T4', 'memory.free': '9000', 'memory.total': '15360', 'compute_cap': '7.5'}
CARDS = [T4, {**T4, 'index': '1', 'uuid': 'GPU-b', 'memory.free': '15000'}, {**T4, 'index': '2', 'uuid': 'GPU-c', 'name': 'NVIDIA Z900', 'compute_cap': '8.9'}]


def smi(monkeypatch, cards): monkeypatch.setattr(hardware, '_smi', lambda: cards)


ENTRIES = json.loads((files('qlora_nb')/'assets'/'gpus.json').read_text(encoding='utf-8'))['gpus']
ASKED = ('T4', 'P100', 'V100 16GB', 'RTX 3060', 'RTX 3090', 'RTX 4060 Ti', 'RTX 4080', 'RTX 4090', 'RTX 5090', 'A10G', 'L4', 'L40S', 'A40', 'A5000', 'A6000',
    'A100 40GB', 'A100 80GB', 'H100', 'H200', 'B200', 'MI300X')


def test_every_card_has_a_source_and_a_date():
    for g in ENTRIES:
        assert g['date'] and g['source'] and g['spec'] and (g['tflops'] is None or 'http' in g['spec'])
        for p in g['prices']: assert p['page'].startswith('https://') and '2026-01-01'<p['date']<=g['date'] and 0<p['usd']<30
    for d in gpus(): assert gpu(d.name)==d and (d.memory is None or 5*GiB<d.memory<200*GiB)
    for d in gpus():
        if d.kind=='cuda': assert d.bf16==(d.capability>=(8, 0))


def test_every_card_that_people_rent_is_complete():
    for n in ASKED:
        d = gpu(n)
        assert d.memory and d.bandwidth and d.tflops
    assert [d.name for d in map(gpu, ASKED) if not d.prices]==['P100', 'RTX 4060 Ti 16GB']
    assert all(gpu(g['name']).tflops is None for g in ENTRIES if g['kind']=='mps')


def test_no_sparse_figure(): assert gpu('H100').tflops==989 and gpu('A100 80GB').tflops==312 and gpu('RTX 4090').tflops==165.2 and gpu('B200').tflops==2250


def own(tmp_path, monkeypatch, text):
    f = tmp_path/'gpus.json'
    f.write_text(text if isinstance(text, str) else json.dumps(text))
    monkeypatch.setenv(hardware.OWN, str(f))


def test_own_cards_win_and_are_read_again_when_they_change(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, dict(gpus=[dict(name='t4', usable_gib=14, also=['Colab'])]))
    assert gpu('T4').memory==14*GiB and gpu('colab').tflops==65 and hardware.OWN not in gpu('colab').source
    own(tmp_path, monkeypatch, dict(gpus=[dict(name='Lab', usable_gib=40, capability=[9, 0], date='2026-11-22')]))
    assert gpu('lab').bf16 and gpu('lab').tflops is None and gpu('lab').source=='QLORA_NB_GPUS (2026-11-22)' and gpu('T4').memory>14*GiB
    assert len(hardware.catalogue().rows())==len(ENTRIES)+1 and 'Lab' in str(hardware.catalogue())


@pytest.mark.parametrize('text,say', [('[', 'not JSON'), ('[]', 'a list under'), (dict(gpus=[dict(usable_gib=4)]), 'needs a `name`'),
    (dict(gpus=[dict(name='x', price=1)]), "Did you mean 'prices'"), (dict(gpus=[dict(name='x', tflops='9')]), 'positive number'),
    (dict(gpus=[dict(name='x', usable_gib=True)]), 'positive number'), (dict(gpus=[dict(name='x', prices=[dict(usd=1)])]), 'has `usd`')])
def test_a_bad_file_is_refused_in_one_line(tmp_path, monkeypatch, text, say):
    own(tmp_path, monkeypatch, text)
    with pytest.raises(QLoRAError, match=say) as e: gpus()
    assert '\n' not in str(e.value)
    monkeypatch.setenv(hardware.OWN, str(tmp_path/'none'))
    with pytest.raises(QLoRAError, match='cannot be read'): gpus()


def test_usable_memory_is_below_the_label():
    labels = {'T4': 16, 'A100 40GB': 40, 'A100 80GB': 80, 'L4': 24, 'A10G': 24, 'RTX 4080': 16, 'RTX 4090': 24, 'RTX 5090': 32}
    assert all(gpu(n).memory<gib*GiB for n,gib in labels.items())


@pytest.mark.parametrize('name,want', [('t4', 'T4'), ('NVIDIA GeForce RTX 4090', 'RTX 4090'), ('NVIDIA A100 80GB PCIe', 'A100 80GB'),
    ('Tesla V100-SXM2-16GB', 'V100 16GB'), ('NVIDIA H100 80GB HBM3', 'H100 80GB')])
def test_cards_by_the_names_of_drivers(name, want): assert gpu(name).name==want


@pytest.mark.parametrize('name,near', [('RTX 4091', 'RTX 4090'), ('V100', 'V100 16GB'), ('A100', 'A100 40GB')])
def test_unknown_card_gets_its_neighbour(name, near):
    with pytest.raises(QLoRAError, match=f'Did you mean {near!r}') as e: gpu(name)
    assert '\n' not in str(e.value)


def test_cpuinfo(tmp_path):
    f = tmp_path/'cpuinfo'
    f.write_text('processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\nmodel name\t: Some Xeon\n')
    assert hardware._cpuinfo(f)==('Some Xeon', {'fpu', 'avx512_bf16', 'sse'})
    assert hardware._cpuinfo(tmp_path/'none')[1]==set()


@pytest.mark.skipif(sys.platform!='linux', reason='the flags are read from /proc')
def test_cpu_agrees_with_torch(monkeypatch):
    import torch
    monkeypatch.delenv(hardware.CPU_DTYPE, raising=False)
    assert cpu().bf16==bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def test_float32_can_be_forced_on_a_cpu(monkeypatch):
    monkeypatch.setattr(hardware, '_cpuinfo', lambda: ('new', {'avx512_bf16'}))
    for asked,compute,say in (('', 'bfloat16', 'natively'), ('float32', 'float32', 'QLORA_NB_CPU_DTYPE')):
        monkeypatch.setenv(hardware.CPU_DTYPE, asked)
        p = precision(cpu())
        assert p.compute==compute and say in p.why
    monkeypatch.setenv(hardware.CPU_DTYPE, 'float16')
    with pytest.raises(QLoRAError, match="QLORA_NB_CPU_DTYPE must be float32 or empty, got 'float16'"): cpu()


@pytest.mark.parametrize('v1', [True, False])
def test_a_container_limit_counts(tmp_path, v1, monkeypatch):
    d = tmp_path/'memory' if v1 else tmp_path
    d.mkdir(exist_ok=True)
    limit,used,cached = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file') if v1 else ('memory.max', 'memory.current', 'inactive_file')
    (d/limit).write_text('1000\n')
    (d/used).write_text('700\n')
    (d/'memory.stat').write_text(f'anon 100\n{cached} 200\n')
    assert hardware._container_room(tmp_path)==500
    (d/limit).write_text('max\n')
    assert hardware._container_room(tmp_path) is None
    monkeypatch.setattr(hardware, '_container_room', lambda: 500)
    assert cpu().memory==500


def fake_cuda(monkeypatch, name, cap, count=1):
    import torch
    props = NS(name=name, total_memory=15*GiB, major=cap[0], minor=cap[1])
    for k,v in dict(is_available=lambda: True, current_device=lambda: 0, get_device_properties=lambda i: props, device_count=lambda: count).items():
        monkeypatch.setattr(torch.cuda, k, v)


def test_detect(monkeypatch):
    assert detect().kind=='cpu'
    fake_cuda(monkeypatch, 'Tesla T4', (7, 5), 2)
    d = detect()
    assert (d.kind, d.name, d.memory, d.capability, d.bf16, d.count)==('cuda', 'Tesla T4', 15*GiB, (7, 5), False, 2)
    fake_cuda(monkeypatch, 'NVIDIA L4', (8, 9))
    assert detect().bf16


def test_smi_reads_the_tool(tmp_path, monkeypatch):
    tool = tmp_path/'nvidia-smi'
    tool.write_text("#!/bin/sh\necho '0, GPU-a, Tesla T4, 9000, 15360, 7.5'\necho '1, GPU-b, NVIDIA L4, 22000, 23034, 8.9'\n")
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert [c['name'] for c in hardware._smi()]==['Tesla T4', 'NVIDIA L4']
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert glance()==replace(gpu('T4'), name='Tesla T4', count=2, source='catalogue')
    tool.write_text('#!/bin/sh\nexit 9\n')
    assert hardware._smi()==[] and glance() is None


@pytest.mark.parametrize('hidden,state,said', [('', 'note', "hidden by CUDA_VISIBLE_DEVICES=''"), (None, 'bad', 'PyTorch')])
def test_the_doctor_tells_a_hidden_card_from_one_that_pytorch_cannot_use(monkeypatch, hidden, state, said):
    import torch
    from qlora_nb.ui.doctor import check_gpu
    monkeypatch.setattr(torch.cuda, 'is_available', bool)
    smi(monkeypatch, [T4])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden) if hidden is not None else monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    finding, = check_gpu()
    assert finding.state==state and 'Tesla T4' in finding.found and said in finding.found and finding.remedy


def test_glance_at_a_card_that_nobody_knows(monkeypatch):
    smi(monkeypatch, CARDS)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,0')
    d = glance()
    assert d.name=='NVIDIA Z900' and d.memory==15360*2**20 and d.bf16 and d.count==2


@pytest.mark.parametrize('env,want', [({}, 'GPU-b'), (dict(CUDA_VISIBLE_DEVICES='0,2'), 'GPU-a'), (dict(CUDA_VISIBLE_DEVICES='GPU-c,GPU-b'), 'GPU-b')])
def test_the_emptiest_visible_gpu_is_picked(monkeypatch, env, want):
    smi(monkeypatch, CARDS)
    said = pick_gpu(env)
    assert env['CUDA_VISIBLE_DEVICES']==want and 'accelerate launch' in said


@pytest.mark.parametrize('env', [dict(RANK='0'), dict(LOCAL_RANK='1'), dict(WORLD_SIZE='2'), dict(CUDA_VISIBLE_DEVICES='1'), dict(CUDA_VISIBLE_DEVICES='')])
def test_nothing_to_pick(monkeypatch, env):
    smi(monkeypatch, CARDS)
    before = dict(env)
    assert pick_gpu(env)=='' and env==before


def test_too_late_to_pick(monkeypatch):
    import torch
    smi(monkeypatch, CARDS)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    env = {}
    assert 'restart the kernel' in pick_gpu(env) and env=={}


CPU,CPU16 = Device('cpu', 'old'),Device('cpu', 'new', bf16=True)
@pytest.mark.parametrize('device,asked,compute,say', [(CPU, 'auto', 'float32', 'neither'), (CPU16, 'auto', 'bfloat16', 'natively'), (CPU16, 'float32', 'float32', 'as asked'),
    (CPU, 'bfloat16', 'bfloat16', 'emulated'), (CPU16, 'float16', 'float16', 'loss scaling'), (gpu('T4'), 'auto', 'float16', 'emulates'),
    (gpu('T4'), 'bfloat16', 'bfloat16', 'emulated'), (gpu('V100 32GB'), 'auto', 'float16', 'emulates'), (gpu('A100 40GB'), 'auto', 'bfloat16', 'natively'),
    (gpu('L4'), 'float16', 'float16', 'cannot overflow'), (Device('mps', 'Apple GPU'), 'auto', 'float32', 'Apple')])
def test_precision(device, asked, compute, say):
    p = precision(device, asked)
    assert p.compute==compute and p.adapters=='float32' and say in p.why


def test_precision_refuses_other_words():
    with pytest.raises(QLoRAError, match="Did you mean 'float16'"): precision(CPU, 'float6')


def test_no_torch_for_a_glance():
    code = "import sys; from qlora_nb.facts.hardware import glance, gpu, cpu, precision; glance(); precision(cpu()); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='False'
