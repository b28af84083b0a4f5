"Facts about this machine, read from stand-ins; no test here needs or uses a GPU"
import subprocess, sys
from dataclasses import replace
from types import SimpleNamespace as NS

import pytest

from qlora_nb.errors import QLoRAError
from qlora_nb.facts import machine
from qlora_nb.facts.hardware import CPU_DTYPE, gpu, precision
from qlora_nb.facts.machine import cpu, detect, glance, nvidia_smi, pick_gpu
from qlora_nb.render import GiB

T4 = {'index': '0', 'uuid': 'GPU-a', 'name': 'Tesla T4', 'memory.free': '9000', 'memory.total': '15360', 'compute_cap': '7.5', 'mig.mode.current': '[N/A]'}
GPUS = [T4, {**T4, 'index': '1', 'uuid': 'GPU-b', 'memory.free': '15000'}, {**T4, 'index': '2', 'uuid': 'GPU-c', 'name': 'NVIDIA Z900', 'compute_cap': '8.9'}]


def smi(monkeypatch, gpus): monkeypatch.setattr(machine, 'nvidia_smi', lambda: gpus)


def test_cpuinfo(tmp_path):
    f = tmp_path/'cpuinfo'
    f.write_text('processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx512_bf16 sse\n\nprocessor\t: 1\nmodel name\t: Some Xeon\n')
    assert machine._cpuinfo(f)==('Some Xeon', {'fpu', 'avx512_bf16', 'sse'})
    assert machine._cpuinfo(tmp_path/'none')[1]==set()


@pytest.mark.skipif(sys.platform!='linux', reason='the flags are read from /proc')
def test_cpu_agrees_with_torch(monkeypatch):
    import torch
    monkeypatch.delenv(CPU_DTYPE, raising=False)
    assert cpu().bf16==bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def test_float32_can_be_forced_on_a_cpu(monkeypatch):
    monkeypatch.setattr(machine, '_cpuinfo', lambda: ('new', {'avx512_bf16'}))
    for asked,compute,say in (('', 'bfloat16', 'natively'), ('float32', 'float32', 'QLORA_NB_CPU_DTYPE')):
        monkeypatch.setenv(CPU_DTYPE, asked)
        p = precision(cpu())
        assert p.compute==compute and say in p.why
    monkeypatch.setenv(CPU_DTYPE, 'float16')
    with pytest.raises(QLoRAError, match="QLORA_NB_CPU_DTYPE must be float32 or empty, got 'float16'"): cpu()


@pytest.mark.parametrize('v1', [True, False])
def test_a_container_limit_counts(tmp_path, v1, monkeypatch):
    d = tmp_path/'memory' if v1 else tmp_path
    d.mkdir(exist_ok=True)
    limit,used,cached = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file') if v1 else ('memory.max', 'memory.current', 'inactive_file')
    (d/limit).write_text('1000\n')
    (d/used).write_text('700\n')
    (d/'memory.stat').write_text(f'anon 100\n{cached} 200\n')
    assert machine._container_free(tmp_path)==500
    (d/limit).write_text('max\n')
    assert machine._container_free(tmp_path) is None
    monkeypatch.setattr(machine, '_container_free', lambda: 500)
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
    tool.write_text("#!/bin/sh\necho '0, GPU-a, Tesla T4, 9000, 15360, 7.5, [N/A]'\necho '1, GPU-b, NVIDIA L4, 22000, 23034, 8.9, Disabled'\n")
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert [c['name'] for c in nvidia_smi()]==['Tesla T4', 'NVIDIA L4']
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert glance()==replace(gpu('T4'), name='Tesla T4', count=2, source='catalogue')
    tool.write_text('#!/bin/sh\nexit 9\n')
    assert nvidia_smi()==[] and glance() is None


@pytest.mark.parametrize('hidden,state,said', [('', 'note', "hidden by CUDA_VISIBLE_DEVICES=''"), (None, 'bad', 'PyTorch')])
def test_the_doctor_tells_a_hidden_gpu_from_one_that_pytorch_cannot_use(monkeypatch, hidden, state, said):
    import torch
    from qlora_nb.ui.doctor import check_gpu
    monkeypatch.setattr(torch.cuda, 'is_available', bool)
    smi(monkeypatch, [T4])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden) if hidden is not None else monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    finding, = check_gpu()
    assert finding.state==state and 'Tesla T4' in finding.found and said in finding.found and finding.remedy


def test_glance_at_a_gpu_that_nobody_knows(monkeypatch):
    smi(monkeypatch, GPUS)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,0')
    d = glance()
    assert d.name=='NVIDIA Z900' and d.memory==15360*2**20 and d.bf16 and d.count==2


@pytest.mark.parametrize('env,want', [({}, 'GPU-b'), (dict(CUDA_VISIBLE_DEVICES='0,2'), 'GPU-a'), (dict(CUDA_VISIBLE_DEVICES='GPU-c,GPU-b'), 'GPU-b')])
def test_the_emptiest_visible_gpu_is_picked(monkeypatch, env, want):
    smi(monkeypatch, GPUS)
    device,_ = pick_gpu(env)
    assert env['CUDA_VISIBLE_DEVICES']==want and device.kind=='cpu'


@pytest.mark.parametrize('env', [dict(CUDA_VISIBLE_DEVICES='1'), dict(CUDA_VISIBLE_DEVICES='')])
def test_nothing_to_pick(monkeypatch, env):
    smi(monkeypatch, GPUS)
    before = dict(env)
    assert pick_gpu(env)[1]=='' and env==before


def test_no_torch_for_a_glance():
    code = "import sys; from qlora_nb.facts.hardware import precision; from qlora_nb.facts.machine import cpu, glance; glance(); precision(cpu()); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='False'
