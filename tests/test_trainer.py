"A run ends finished, stopped with a checkpoint, or refused with one line: on a real 4-bit Llama of two layers"
import _thread, json, math, shutil, subprocess, threading, time
import pytest, tiny
from qlora_nb.errors import QLoRAError
from qlora_nb.training.run import Interrupted
from qlora_nb.training.start import current, new_run, start, train

@pytest.fixture
def cell(folder, tmp_path):
    def make(out=None, data='rows', **training):
        t = dict(per_device_train_batch_size=2, gradient_accumulation_steps=1, max_length=64, learning_rate=1e-2, max_steps=4)|training
        lines = ''.join(f'  {k}: {v}\n' for k,v in t.items())
        return f'model: {folder}\ndata: {{train: {data}, validation: rows}}\ntraining:\n{lines}output: {{output_dir: {out or tmp_path}}}\n'
    return make

NS = dict(rows=tiny.rows())
COMPLETE = {'adapter_model.safetensors', 'optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'trainer_state.json'}
def files(run, name): return {p.name for p in (run.folder/name).iterdir()}
def events(run): return [json.loads(l) for l in (run.folder/'events.jsonl').read_text().splitlines()]

def test_a_run_to_its_end(cell):
    run = train(cell(max_steps=30), NS, name='whole')
    assert run.status=='finished' and run.step==30 and not run.running and len(run.losses)==30
    assert run.losses[-1][1]<run.losses[0][1] and run.evals
    assert {'config.yaml', 'events.jsonl', 'report.html', 'report.md', 'adapter'} <= {p.name for p in run.folder.iterdir()}
    assert [e['step'] for e in events(run) if e['event']=='log' and 'loss' in e]==list(range(1, 31))
    assert 'whole: finished' in (run.folder/'report.md').read_text() and '<svg' in (run.folder/'report.html').read_text()

@pytest.fixture(params=['as chosen', 'float32'])
def compute(request, monkeypatch):
    "The dtype of the matrix products: what this CPU takes, and what one without AVX512-BF16 takes"
    if request.param=='float32': monkeypatch.setenv('QLORA_NB_CPU_DTYPE', 'float32')

def test_the_adapter_is_read_back_by_peft_alone(cell, folder, compute):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from qlora_nb.methods.storage import stored_as
    from qlora_nb.training.loading import guard
    run = train(cell(), NS)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager',
        **stored_as(run.config.quantization).load_kwargs(getattr(torch, run.precision.compute)))
    again = PeftModel.from_pretrained(guard(base), run.adapter).eval()
    x = torch.arange(3, 40)[None]
    with torch.no_grad(): assert torch.equal(again(input_ids=x).logits, run.model(input_ids=x).logits)
    assert AutoTokenizer.from_pretrained(run.adapter).chat_template==run.tokenizer.chat_template

def test_stop_ends_after_the_step_with_a_full_checkpoint(cell):
    run = train(cell(max_steps=50), NS, on_change=tiny.at_step(3, lambda run: run.stop('test')))
    assert run.status=='stopped' and 3<=run.step<=4 and run.checkpoints==[f'checkpoint-{run.step}']
    assert COMPLETE <= files(run, run.checkpoints[0]) and (run.folder/'adapter'/'adapter_model.safetensors').is_file()

def test_the_first_interrupt_finishes_the_step(cell):
    run = train(cell(max_steps=50), NS, on_change=tiny.at_step(2, lambda run: _thread.interrupt_main()))
    assert run.status=='stopped' and COMPLETE <= files(run, run.checkpoints[-1]) and run.step<50

def test_the_second_interrupt_returns_at_once_and_the_worker_ends_soon(cell):
    gate = threading.Event()
    def twice(run):
        _thread.interrupt_main()
        while not run._stop.is_set(): time.sleep(.01)
        _thread.interrupt_main()
        gate.wait(10)
    with pytest.raises(Interrupted) as e: train(cell(max_steps=500), NS, name='two', on_change=tiny.at_step(2, twice))
    run = current()
    assert run.running and 'next micro-batch' in e.value._render_traceback_()[0]
    with pytest.raises(QLoRAError, match='two is still running'): new_run(cell())
    gate.set()
    assert run._done.wait(30) and run.status=='stopped' and run.step<20
    assert run.checkpoints==[f'checkpoint-{run.step}'] and COMPLETE <= files(run, run.checkpoints[0]), 'the last whole step is saved all the same'

def test_the_end_is_shown_before_the_cell_returns(cell):
    "However slow the last redraw is"
    shown = []
    def slow(run):
        if run.running: return
        time.sleep(1.5)
        shown.append(str(run))
    run = train(cell(max_steps=1), NS, name='slow', on_change=slow)
    assert len(shown)==1 and 'slow: finished' in shown[0] and (run.folder/'report.md').read_text()==shown[0]+'\n'

def test_a_panel_that_hangs_at_the_end_does_not_keep_the_cell(cell, monkeypatch):
    from qlora_nb.training import run as room
    monkeypatch.setattr(room, 'LAST', .5)
    gate = threading.Event()
    def hangs(run):
        if not run.running: gate.wait(60)
    run = train(cell(max_steps=1), NS, on_change=hangs)
    assert run.status=='finished' and not run._done.is_set() and (run.folder/'report.html').is_file()
    assert train(cell(max_steps=1), NS).status=='finished' # and nothing stands in the way of the next run
    gate.set()
    assert run._done.wait(10)

def test_an_interrupt_ends_the_wait_for_a_panel_that_hangs(cell):
    gate = threading.Event()
    def hangs(run):
        if run.running: return
        _thread.interrupt_main()
        gate.wait(60)
    begun = time.time()
    run = train(cell(max_steps=1), NS, on_change=hangs)
    gate.set()
    assert run.status=='finished' and time.time()-begun<25

def test_background(cell):
    run = start(new_run(cell(max_steps=200), 'bg'), NS)
    with pytest.raises(QLoRAError, match='bg is still running'): new_run(cell())
    while run.step<2: time.sleep(.02)
    run.stop()
    assert run.wait().status=='stopped' and run.step<200

def test_a_run_never_writes_into_an_older_folder(cell):
    a,b = train(cell(max_steps=1), NS, name='same'),train(cell(max_steps=1), NS, name='same')
    assert (a.folder.name, b.folder.name)==('same', 'same-2')

def test_a_loss_that_is_not_a_number_stops_the_run(cell, tmp_path, folder):
    from safetensors.torch import load_file, save_file
    bad = tmp_path/'bad'
    shutil.copytree(folder, bad)
    w = load_file(bad/'model.safetensors')
    w['model.norm.weight'][3] = math.nan
    save_file(w, bad/'model.safetensors', dict(format='pt'))
    with pytest.raises(QLoRAError, match=r'the loss is NaN or infinite at step 1, on training rows \d+, \d+ \(".*"\). No checkpoint had been saved. Try a lower training.learning_rate') as e:
        train(cell().replace(str(folder), str(bad)), NS)
    assert current().status=='failed' and len(str(e.value).splitlines())==1 and current().step==0
    assert math.isnan(current().losses[-1][1])

@pytest.fixture
def small_disk(tmp_path):
    d = tmp_path/'disk'
    d.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', d], capture_output=True).returncode: pytest.skip('mounting is not permitted here')
    yield d
    subprocess.run(['umount', '-l', d])

def test_a_full_disk_loses_nothing(cell, small_disk, tmp_path):
    with pytest.raises(QLoRAError, match='the disk is full.*still in memory.*run.save') as e: train(cell(small_disk, max_steps=3, save_steps=2), NS)
    run = current()
    assert len(str(e.value).splitlines())==1 and run.step==2 and not list(run.folder.glob('checkpoint-*'))
    assert (run.save(tmp_path/'elsewhere')/'adapter_model.safetensors').is_file()

@pytest.mark.parametrize('rows,said', [([], 'has no rows'), ([dict(a='x', b='y')], 'the columns a, b have no known form'),
    ([dict(prompt='x', completion='')], 'no row of bad is left'), (3, 'bad must be a DataFrame')])
def test_bad_rows_are_one_line(cell, rows, said):
    with pytest.raises(QLoRAError, match=said) as e: train(cell(data='bad'), dict(rows=tiny.rows(), bad=rows))
    assert len(str(e.value).splitlines())==1 and current().status=='failed' and said in (current().folder/'report.md').read_text()

def test_rows_longer_than_max_length_are_said_before_the_first_step(cell):
    said = []
    def watch(run): said.append((run.step, list(run.notes)))
    train(cell(max_length=50, max_steps=1), dict(rows=[*tiny.rows(), dict(prompt='who '*20, completion='x')]), on_change=watch)
    assert any(step==0 and any('prompt alone fills max_length 50' in n for n in notes) for step,notes in said)

def test_an_adapter_without_gradient_is_named():
    import torch
    from qlora_nb.methods.lora import LORA
    from qlora_nb.training.watch import dead
    m = torch.nn.ModuleDict(dict(lora_B=torch.nn.Linear(2, 2), other=torch.nn.Linear(2, 2)))
    assert dead(m, LORA.trains)==['lora_B.weight', 'lora_B.bias']
    m['lora_B'](torch.ones(1, 2)).sum().backward()
    assert dead(m, LORA.trains)==[]

def test_the_trainable_tensors_are_float32_and_only_answers_are_learned(cell):
    run = train(cell(max_steps=1), NS)
    assert {str(p.dtype) for p in run.trainer.model.parameters() if p.requires_grad}=={'torch.float32'}
    row = run.data.train.dataset[0]
    assert run.tokenizer.decode([t for t in row['labels'] if t!=-100]).replace(' ', '') in ('thecat</s>', 'thecat</s>')

def test_packed_rows_learn_what_single_rows_learn(cell):
    "Four rows in one packed sequence and in one padded batch: the same loss"
    rows = dict(rows=tiny.rows(4))
    packed = train(cell(packing='true', max_length=256, per_device_train_batch_size=1, max_steps=1), rows)
    assert len(packed.trainer.train_dataset)==1
    padded = train(cell(max_length=256, per_device_train_batch_size=4, max_steps=1), rows)
    assert abs(packed.losses[0][1]-padded.losses[0][1])<5e-3
