"The paths of GPUs, taken on a CPU with stand-ins for what only a GPU has; no test here needs or uses one"
import gc, json, os, shutil, subprocess, sys, weakref
from dataclasses import replace
from types import SimpleNamespace as NS
from unittest.mock import patch

import pytest, test_runs, tiny, torch
from bitsandbytes import functional
from bitsandbytes.optim import GlobalOptimManager
from bitsandbytes.optim.ademamix import AdEMAMix
from bitsandbytes.optim.optimizer import Optimizer8bit
from conftest import root
from test_machine import GPUS, T4, fake_cuda, smi
from test_resume import final
from test_runs import cell
from qlora_nb.config import resolve
from qlora_nb.errors import QLoRAError
from qlora_nb.facts import machine
from qlora_nb.facts.machine import glance, pick_gpu
from qlora_nb.facts.optimizers import OPTIMIZERS
from qlora_nb.store.folder import read_about, write_about
from qlora_nb.tasks import trainers
from qlora_nb.training import guard
from qlora_nb.training.start import resume, train
from qlora_nb.ui.doctor import check_4bit, check_gpu

NS_ROWS = dict(rows=tiny.rows(12))
scaled = test_runs.scaled # A fixture


def stop(run): run.stop('test')


@pytest.fixture(scope='module')
def small(tmp_path_factory): return tiny.model_folder(tmp_path_factory.mktemp('small'), hidden=64, layers=1)


@pytest.fixture
def paged_here(monkeypatch):
    "Paged optimizers stay paged on a CPU, as bitsandbytes has them there: without managed memory"
    monkeypatch.setattr(resolve, 'OPTIMIZERS', {name: replace(o, unpaged='') for name,o in OPTIMIZERS.items()})


@pytest.fixture
def managed(monkeypatch, paged_here):
    "Managed memory as a GPU has it: marked tensors that are made once and never freed; the list of them"
    made = []
    def get_paged(*shape, dtype, device):
        made.append(torch.full(shape, 7, dtype=dtype))
        made[-1].is_paged,made[-1].page_deviceid = True,device.index
        return made[-1]
    def buffer(self, p, dtype=torch.float32):
        if not self.is_paged: return torch.zeros_like(p, dtype=dtype)
        return get_paged(*p.shape, dtype=dtype, device=p.device).zero_()
    def double(self, p, dtype=torch.float32): return get_paged(2, *p.shape, dtype=dtype, device=p.device).zero_()
    for cls,name,do in ((Optimizer8bit, 'get_state_buffer', buffer), (AdEMAMix, '_get_state_double_buffer', double)):
        do.__name__ = name
        monkeypatch.setattr(cls, name, do)
    monkeypatch.setattr(functional, 'fill', lambda buffer, value: buffer.fill_(value))
    monkeypatch.setattr(functional, 'prefetch_tensor', lambda buffer: None)
    monkeypatch.setattr(guard, '_spare', {})
    return made


def with_optim(text, name, more=''): return text.replace('optim: adamw_torch', f'optim: {name}{more}')


def buffers(run): return [v for values in run.trainer.optimizer.state.values() for k,v in values.items() if k in ('state1', 'state2')]


# ---- managed memory

@pytest.mark.parametrize('name', ['paged_adamw_8bit', 'paged_ademamix_32bit'])
def test_the_trial_allocates_no_managed_memory_twice(managed, small, tmp_path, name):
    tried = train(with_optim(cell(small, tmp_path/'tried'), name), NS_ROWS)
    states = len({id(p) for group in tried.trainer.optimizer.param_groups for p in group['params']})*2
    assert len(managed)==states
    plain = train(with_optim(cell(small, tmp_path/'plain'), name, ', preflight: false'), NS_ROWS)
    assert final(tried)==final(plain) and len(managed)==states


def test_a_resumed_run_is_still_paged_and_takes_no_other_memory(managed, small, tmp_path):
    "With the trial of the longest batch, which keeps the loaded state and puts it back"
    whole = train(with_optim(cell(small, tmp_path/'whole'), 'paged_adamw_32bit'), NS_ROWS)
    made = len(managed)
    run = train(with_optim(cell(small, tmp_path/'cut'), 'paged_adamw_32bit'), NS_ROWS, on_change=tiny.at_step(1, stop))
    marks = []
    def look(run):
        if run.step>2 and run.status=='training': marks.extend(getattr(b, 'is_paged', False) for b in buffers(run))
    again = resume(str(run.folder), namespace=NS_ROWS, on_change=look)
    assert marks and all(marks) and final(again)==final(whole) and len(managed)==made


def test_smaller_micro_batches_use_the_managed_memory_of_the_larger_ones(managed, monkeypatch, small, tmp_path):
    full(monkeypatch, 1)
    run = train(with_optim(cell(small, tmp_path), 'paged_adamw_32bit', ', on_oom: shrink'), NS_ROWS)
    assert run.config.training.per_device_train_batch_size==1 and len(managed)==2*len(run.trainer.optimizer.param_groups[0]['params'])


# ---- what bitsandbytes keeps for a whole process

def test_an_embedding_is_gone_after_a_run_with_an_8bit_optimizer(small, tmp_path):
    manager = GlobalOptimManager.get_instance()
    run = train(with_optim(cell(small, tmp_path), 'adamw_8bit'), NS_ROWS)
    embedding = weakref.ref(run.model.get_input_embeddings())
    assert manager.module_weight_config_triple==[] and not manager.pid2config and not manager.index2config
    run.model = run.trainer = None
    gc.collect()
    assert embedding() is None


# ---- memory that is not enough

def full(monkeypatch, rows):
    "Let a pass over more than `rows` rows fail as on a GPU that is full; whether autocast is on in each pass"
    step,seen = trainers.Continuing.compute_loss,[]
    def compute_loss(self, model, inputs, *args, **kw):
        layer = model.get_base_model().model.layers[0].mlp
        handle = layer.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled('cpu')))
        try:
            loss = step(self, model, inputs, *args, **kw)
            if len(inputs['input_ids'])>rows: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')
            return loss
        finally: handle.remove()
    monkeypatch.setattr(trainers.Continuing, 'compute_loss', compute_loss)
    return seen


def test_smaller_micro_batches_keep_autocast_and_loss_scaling(scaled, monkeypatch, small, tmp_path):
    "With TRL's own loss, as on a GPU, which leaves autocast to the prepared model"
    scaled()
    monkeypatch.setattr(trainers, 'plain_head', lambda config: False)
    seen = full(monkeypatch, 1)
    text = with_optim(cell(small, tmp_path), 'adamw_torch', ', on_oom: shrink')+'quantization: {bnb_4bit_compute_dtype: bfloat16}\n'
    run = train(text, NS_ROWS)
    assert run.status=='finished' and run.config.training.per_device_train_batch_size==1 and run.trainer.accelerator.scaler.get_scale()==64
    assert len(seen)>1+4*2 and all(seen)


def converts(*args, **kw): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')


@pytest.mark.parametrize('where,bits,help', [('transformers.integrations.bitsandbytes.Bnb4bitQuantize.convert', 4, 'What helps: a smaller model'),
    ('qlora_nb.training.setup.load_base', 8, 'What helps: quantization.bits: 4, a smaller model')])
def test_memory_that_is_not_enough_for_the_base_is_answered(small, tmp_path, where, bits, help):
    with patch(where, converts), pytest.raises(QLoRAError, match='not enough memory to load the base model. The plan has') as e:
        train(cell(small, tmp_path)+f'quantization: {{bits: {bits}}}\n', NS_ROWS)
    assert help in str(e.value) and '\n' not in str(e.value)


def test_memory_that_is_not_enough_for_the_adapters_is_answered(small, tmp_path):
    with patch('qlora_nb.training.trainer.trainer_class', converts), pytest.raises(QLoRAError, match='not enough memory to attach the adapters'):
        train(cell(small, tmp_path), NS_ROWS)


def test_another_error_of_quantising_is_named_and_not_hidden_in_a_log(small, tmp_path):
    def fails(*args, **kw): raise ValueError('an odd tensor')
    with patch('transformers.integrations.bitsandbytes.Bnb4bitQuantize.convert', fails), pytest.raises(QLoRAError, match='an odd tensor'):
        train(cell(small, tmp_path), NS_ROWS)


# ---- the memory of a kernel

def test_the_device_of_a_second_run_is_looked_at_when_the_first_model_is_gone(monkeypatch, small, tmp_path):
    first = train(cell(small, tmp_path), NS_ROWS)
    base,alive,seen = weakref.ref(first.model),[],machine.detect
    def detect():
        alive.append(base() is not None)
        return seen()
    monkeypatch.setattr(machine, 'detect', detect)
    train(cell(small, tmp_path), NS_ROWS)
    assert alive==[False]


THRICE = '''
import ctypes, gc, json, sys
sys.path.insert(0, TESTS)
import psutil, tiny, torch
from IPython.core.interactiveshell import InteractiveShell
torch.set_num_threads(1)
shell = InteractiveShell()
shell.run_line_magic('load_ext', 'qlora_nb')
shell.user_ns['rows'] = tiny.rows(4)
shell.run_cell_magic('qlora_config', '', CELL)
sizes = []
for _ in range(3):
    done = shell.run_cell('%qlora_train', store_history=True)
    assert done.success and done.result.status=='finished', done
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    sizes.append(psutil.Process().memory_info().rss)
    kept = done.result.model.get_base_model().num_parameters()*2
print(json.dumps([sizes, kept]))
'''


@pytest.mark.skipif(sys.platform!='linux', reason='malloc_trim is of glibc')
def test_three_runs_in_a_kernel_take_the_memory_of_one(tmp_path):
    folder = tiny.model_folder(tmp_path/'large', hidden=768, layers=6)
    text = with_optim(cell(folder, tmp_path, 1), 'sgd', ', preflight: false')+'quantization: {bits: none, bnb_4bit_compute_dtype: bfloat16}\n'
    given = dict(TESTS=str(root/'tests'), CELL=text)
    o = subprocess.run([sys.executable, '-c', ''.join(f'{k} = {v!r}\n' for k,v in given.items())+THRICE], capture_output=True, text=True, timeout=300,
        env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1'))
    assert o.returncode==0, o.stderr[-3000:]
    sizes,base = json.loads(o.stdout.splitlines()[-1].split(': ')[-1])
    assert base>.08*sizes[0], 'a base that stays in memory would not show'
    assert all(abs(size/sizes[0]-1)<.05 for size in sizes), sizes


# ---- every optimizer

@pytest.mark.parametrize('name', OPTIMIZERS)
def test_two_steps_and_two_resumed_ones_are_four(paged_here, small, tmp_path, name):
    whole = train(with_optim(cell(small, tmp_path), name, ', preflight: false, save_steps: 2'), NS_ROWS)
    half = shutil.copytree(whole.folder, tmp_path/'half')
    for later in ('checkpoint-4', 'adapter'): shutil.rmtree(half/later)
    write_about(half, status='training')
    again = resume(str(half), namespace=NS_ROWS)
    assert whole.config.training.optim==name and 'resumes from checkpoint-2, at step 2 of 4' in again.notes
    adapters = [(run.folder/'adapter'/'adapter_model.safetensors').read_bytes() for run in (whole, again)]
    assert adapters[0]==adapters[1] and len(whole.losses)==4 and whole.losses==again.losses


# ---- dtypes

def test_a_compute_dtype_that_differs_is_named_at_resume(small, tmp_path):
    run = train(cell(small, tmp_path)+'quantization: {bnb_4bit_compute_dtype: float32}\n', NS_ROWS, on_change=tiny.at_step(1, stop))
    assert read_about(run.folder)['compute']=='float32'
    again = resume(str(run.folder), cell(small, tmp_path)+'quantization: {bnb_4bit_compute_dtype: bfloat16}\n', NS_ROWS)
    change = next(c for c in again.changes.items if c.what=='compute dtype')
    assert (change.was, change.now, change.rule)==('float32', 'bfloat16', 'applied') and 'beyond the last digits' in change.why


def test_float16_on_a_cpu_trains_as_it_is_worded(small, tmp_path):
    run = train(cell(small, tmp_path)+'quantization: {bnb_4bit_compute_dtype: float16}\n', NS_ROWS)
    assert run.status=='finished' and run.trainer.accelerator.scaler is None and any('slowly and without loss scaling' in note for note in run.notes)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_the_doctor_tries_four_bits_in_the_dtype_that_trains(monkeypatch, dtype):
    from bitsandbytes.nn import Linear4bit
    made,init = [],Linear4bit.__init__
    def watched(self, *args, **kw):
        made.append(kw['compute_dtype'])
        init(self, *args, **kw)
    monkeypatch.setattr(Linear4bit, '__init__', watched)
    monkeypatch.setattr('qlora_nb.facts.hardware.precision', lambda device: NS(compute=dtype))
    assert check_4bit()[0].state=='fine' and made==[getattr(torch, dtype)]


# ---- one GPU of several

def gpus(monkeypatch, *uuids, **kw):
    "What torch sees: one GPU for each UUID"
    fake_cuda(monkeypatch, 'Tesla T4', (7, 5), len(uuids))
    seen = torch.cuda.get_device_properties
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: NS(**vars(seen(i)), uuid=uuids[i]))


def test_several_gpus_after_cuda_began_are_refused_before_anything_is_loaded(monkeypatch, small, tmp_path):
    smi(monkeypatch, GPUS)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    gpus(monkeypatch, 'a', 'b')
    with patch('qlora_nb.training.setup.load_base') as load, pytest.raises(QLoRAError, match='2 GPUs are visible and CUDA has already started') as e:
        train(cell(small, tmp_path), NS_ROWS)
    assert not load.called and 'CUDA_VISIBLE_DEVICES=0' in str(e.value) and 'accelerate launch' not in str(e.value)


@pytest.mark.parametrize('env,said', [(dict(LOCAL_RANK='0'), 'LOCAL_RANK=0'), (dict(WORLD_SIZE='2'), 'WORLD_SIZE=2')])
def test_a_launcher_is_refused_in_words(env, said):
    with pytest.raises(QLoRAError, match=f'{said} is set: torchrun or another launcher') as e: pick_gpu(env)
    assert 'accelerate launch' not in str(e.value)


def test_a_launcher_of_one_process_is_none(): assert pick_gpu(dict(LOCAL_RANK='-1', WORLD_SIZE='1'))[0].kind=='cpu'


@pytest.mark.parametrize('uuid,want', [('b', '2 GPUs: training uses GPU 1, Tesla T4, with 14.65 GiB free'), ('a', '')])
def test_the_note_names_the_gpu_that_torch_has(monkeypatch, uuid, want):
    smi(monkeypatch, GPUS[:2])
    gpus(monkeypatch, uuid)
    assert pick_gpu({})[1]==want


def test_the_doctor_chooses_before_it_wakes_the_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    smi(monkeypatch, GPUS[:2])
    gpus(monkeypatch, 'b')
    awake = torch.cuda.is_available
    def is_available():
        assert os.environ['CUDA_VISIBLE_DEVICES']=='GPU-b'
        return awake()
    monkeypatch.setattr(torch.cuda, 'is_available', is_available)
    finding, = check_gpu()
    assert finding.state=='fine' and 'training uses GPU 1' in finding.found


def test_the_doctor_names_several_gpus_that_are_awake(monkeypatch):
    smi(monkeypatch, [])
    gpus(monkeypatch, 'a', 'b')
    finding, = check_gpu()
    assert finding.state=='bad' and '2 GPUs are visible' in finding.found


# ---- what the driver does not say

@pytest.mark.parametrize('env,mode', [('MIG-5c6b', '[N/A]'), ('GPU-a', 'Enabled')])
def test_of_a_divided_gpu_torch_is_asked(monkeypatch, env, mode):
    smi(monkeypatch, [{**T4, 'name': 'NVIDIA A100-SXM4-80GB', 'mig.mode.current': mode}])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', env)
    assert glance() is None # PyTorch has no GPU here
    fake_cuda(monkeypatch, 'NVIDIA A100-SXM4-80GB MIG 1g.10gb', (8, 0))
    assert glance().name.endswith('1g.10gb') and glance().memory==15*2**30
    assert check_gpu()[0].state=='fine' and os.environ['CUDA_VISIBLE_DEVICES']==env


def test_memory_that_the_driver_does_not_know_is_asked_of_torch(monkeypatch):
    shared = {**T4, 'name': 'NVIDIA GB10', 'memory.free': '[N/A]', 'memory.total': '[N/A]', 'compute_cap': '12.1'}
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    smi(monkeypatch, [shared])
    fake_cuda(monkeypatch, 'NVIDIA GB10', (12, 1))
    assert glance().memory==15*2**30 and glance().capability==(12, 1)
    smi(monkeypatch, [shared, {**shared, 'index': '1', 'uuid': 'GPU-b'}])
    gpus(monkeypatch, 'a')
    assert pick_gpu({})[1]=='2 GPUs: training uses GPU 0, NVIDIA GB10'


@pytest.mark.parametrize('allowed,want', [('0,-1,1', ['GPU-a']), ('0,7,1', ['GPU-a']), ('1,1', []), ('-1', []), ('1,0', ['GPU-b', 'GPU-a']), ('', []), (' 1 , GPU-a', ['GPU-b', 'GPU-a'])])
def test_cuda_reads_up_to_the_first_name_that_is_none(allowed, want):
    assert [g['uuid'] for g in machine.visible(GPUS, dict(CUDA_VISIBLE_DEVICES=allowed))]==want


# ---- chance

def test_the_random_state_of_an_apple_gpu_is_put_back(monkeypatch):
    state = [torch.zeros(1)]
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.mps, 'get_rng_state', lambda: state[0].clone())
    monkeypatch.setattr(torch.mps, 'set_rng_state', lambda new: state.__setitem__(0, new))
    then = guard.chance()
    state[0] += 1
    guard.put_back(then)
    assert state[0]==0
