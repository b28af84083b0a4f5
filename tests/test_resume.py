"A run that was ended at any moment goes on as if it had not been: the same adapter, optimizer and losses, bit for bit"
import hashlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, tiny
from qlora_nb.errors import QLoRAError
from qlora_nb.runs import checkpoints, curves, events, latest, Lock, read_about, runs, write_about
from qlora_nb.trainer import current, resume, train

ROWS = dict(rows=tiny.rows(18), held=tiny.rows(5))

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tiny.model_folder(tmp_path_factory.mktemp('tiny'))

def cell(folder, out, lora='', extra='', **training):
    t = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_length=64, learning_rate=5e-3, num_train_epochs=3, save_steps=100, save_total_limit=9)|training
    lines = ''.join(f'  {k}: {v}\n' for k,v in t.items())
    return f'model: {folder}\ndata: {{train: rows, validation: held}}\nlora: {{lora_dropout: 0.1{lora}}}\ntraining:\n{lines}output: {{output_dir: {out}}}\n{extra}'

def sha(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()

def final(run):
    "What must be equal: adapter, optimizer, and every loss"
    import torch
    last = checkpoints(run.folder)[-1]
    state = torch.load(last/'optimizer.pt', weights_only=True)['state']
    h = hashlib.sha256(b''.join(v.numpy().tobytes() for _,s in sorted(state.items()) for _,v in sorted(s.items()) if torch.is_tensor(v))).hexdigest()
    return sha(run.folder/'adapter'/'adapter_model.safetensors'), last.name, h, *curves(run.folder)

def at_step(n, act):
    "Call `act` once, in the worker, when step `n` was reached"
    seen = []
    def watch(run):
        if run.step>=n and not seen and not run.ended:
            seen.append(1)
            act(run)
    return watch

def stop(run): run.stop('test')

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory): return final(train(cell(folder, tmp_path_factory.mktemp('whole')), ROWS, name='run'))

@pytest.mark.parametrize('step', [1, 4, 5, 11, 15])
def test_stopped_and_resumed_is_never_stopped(folder, tmp_path, whole, step):
    text = cell(folder, tmp_path)
    run = train(text, ROWS, name='run', on_change=at_step(step, stop))
    assert run.status=='stopped' and str(run.folder) in run.next
    assert final(resume(str(run.folder), text, ROWS))==whole

def test_from_the_folder_alone(folder, tmp_path, whole):
    run = train(cell(folder, tmp_path), ROWS, name='run', on_change=at_step(7, stop))
    again = resume(str(run.folder))
    assert final(again)==whole and any('rows of rows are those kept' in n for n in again.notes)

@pytest.mark.parametrize('optim', ['adamw_8bit', 'paged_lion_8bit', 'ademamix', 'adafactor', 'rmsprop'])
def test_optimizers_of_bitsandbytes_go_on_exactly(folder, tmp_path, optim):
    text = cell(folder, tmp_path, optim=optim, num_train_epochs=1)
    one = final(train(text, ROWS, name='one'))
    run = train(text, ROWS, name='two', on_change=at_step(2, stop))
    assert final(resume(str(run.folder), text, ROWS))==one

def test_losses_between_two_logs_are_not_lost(folder, tmp_path):
    text = cell(folder, tmp_path, logging_steps=4, num_train_epochs=2)
    one = final(train(text, ROWS, name='one'))
    run = train(text, ROWS, name='two', on_change=at_step(6, stop))
    assert final(resume(str(run.folder), text, ROWS))==one and [s for s,_ in one[3]]==[1, 4, 8]

def test_a_trial_of_the_longest_batch_leaves_no_trace(folder, tmp_path, whole):
    run = train(cell(folder, tmp_path, preflight='false'), ROWS, name='run')
    assert final(run)==whole and run.memory_tried is None

def test_answers_on_the_way_leave_no_trace(folder, tmp_path, whole):
    text = cell(folder, tmp_path, extra='tracking: {sample_prompts: [who is on the mat 1], sample_steps: 5}\n')
    run = train(text, ROWS, name='run')
    assert final(run)==whole and [s for s,_ in run.samples]==[5, 10, 15] and 'who is on the mat 1' in (run.folder/'report.md').read_text()
