"A run that was ended at any moment goes on as if it had not been: the same adapter, optimizer and losses, bit for bit"
import hashlib, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace as S
import pytest, tiny
from conftest import root
from qlora_nb.errors import QLoRAError
from qlora_nb.store.folder import FORMAT, write_about
from qlora_nb.store.checkpoints import checkpoints, curves, events
from qlora_nb.ui.runs import runs
from qlora_nb.training.start import resume, train

ROWS = dict(rows=tiny.rows(18), held=tiny.rows(5, 100))

def cell(folder, out, lora='', extra='', **training):
    t = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_length=64, learning_rate=5e-3, num_train_epochs=3,
        save_steps=100, save_total_limit=9)
    if 'max_steps' in training: t.pop('num_train_epochs')
    t |= training
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

def stop(run): run.stop('test')

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory): return final(train(cell(folder, tmp_path_factory.mktemp('whole')), ROWS, name='run'))

@pytest.mark.parametrize('step', [1, 4, 5, 11, 15])
def test_stopped_and_resumed_is_never_stopped(folder, tmp_path, whole, step):
    text = cell(folder, tmp_path)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(step, stop))
    assert run.status=='stopped' and str(run.folder) in run.next
    assert final(resume(str(run.folder), text, ROWS))==whole

def test_from_the_folder_alone(folder, tmp_path, whole):
    run = train(cell(folder, tmp_path), ROWS, name='run', on_change=tiny.at_step(7, stop))
    again = resume(str(run.folder))
    assert final(again)==whole and any('rows of rows are those kept' in n for n in again.notes)

@pytest.mark.parametrize('optim', ['adamw_8bit', 'paged_lion_8bit', 'ademamix', 'adafactor', 'rmsprop'])
def test_optimizers_of_bitsandbytes_go_on_exactly(folder, tmp_path, optim):
    text = cell(folder, tmp_path, optim=optim, num_train_epochs=1)
    one = final(train(text, ROWS, name='one'))
    run = train(text, ROWS, name='two', on_change=tiny.at_step(2, stop))
    assert final(resume(str(run.folder), text, ROWS))==one

def positions(run): return sum(b['input_ids'].numel() for b in run.trainer.get_train_dataloader())
def tokens(run): return {e['step']: e['num_tokens'] for e in events(run.folder) if e['event']=='log' and 'loss' in e}

def test_rows_of_like_length_pad_less_and_go_on_exactly(folder, tmp_path):
    "Order by length in both epochs, ended in either, with another split of a step too"
    rows = ROWS | dict(rows=[dict(prompt='who is on the mat '+'x'*(i%2*80), completion='the cat') for i in range(18)])
    texts = {k: cell(folder, tmp_path, train_sampling_strategy=k, num_train_epochs=2, max_length=128) for k in ('auto', 'group_by_length', 'random')}
    one = train(texts['auto'], rows, name='auto')
    read = positions(one) # The next run frees its trainer
    assert one.data.sampling=='group_by_length' and read<.9*positions(train(texts['random'], rows, name='random'))
    for step in (2, 7):
        run = train(texts['group_by_length'], rows, name=f'at{step}', on_change=tiny.at_step(step, stop))
        assert final(resume(str(run.folder), texts['auto'], rows))==final(one)
    run = train(texts['auto'], rows, name='split', on_change=tiny.at_step(2, stop))
    assert tokens(resume(str(run.folder), namespace=rows, micro_batch=4))==tokens(one)
    run = train(texts['auto'], rows, name='order', on_change=tiny.at_step(2, stop))
    with pytest.raises(QLoRAError, match='train_sampling_strategy.*the order of the rows follows from it'): resume(str(run.folder), texts['random'], rows)

def test_losses_between_two_logs_are_not_lost(folder, tmp_path):
    text = cell(folder, tmp_path, logging_steps=4, num_train_epochs=2)
    one = final(train(text, ROWS, name='one'))
    run = train(text, ROWS, name='two', on_change=tiny.at_step(6, stop))
    assert final(resume(str(run.folder), text, ROWS))==one and [s for s,_ in one[3]]==[1, 4, 8]

def test_a_trial_of_the_longest_batch_leaves_no_trace(folder, tmp_path, whole):
    run = train(cell(folder, tmp_path, preflight='false'), ROWS, name='run')
    assert final(run)==whole and run.memory.tried is None

def test_answers_on_the_way_leave_no_trace(folder, tmp_path, whole):
    text = cell(folder, tmp_path, extra='tracking: {sample_prompts: [who is on the mat 1], sample_steps: 5}\n')
    run = train(text, ROWS, name='run')
    assert final(run)==whole and [s for s,_ in run.samples]==[5, 10, 15] and 'who is on the mat 1' in (run.folder/'report.md').read_text()

# ---- what changed since

@pytest.fixture(scope='module')
def stopped_once(folder, tmp_path_factory):
    "The folder of a run of 15 steps that stopped at step 4, and the step"
    out = tmp_path_factory.mktemp('stopped')
    run = train(cell(folder, out), ROWS, name='run', on_change=tiny.at_step(4, stop))
    return run.folder,run.step

@pytest.fixture
def stopped(stopped_once, folder, tmp_path):
    "A copy of that run for one test to change, with a function for changed cells"
    source,step = stopped_once
    shutil.copytree(source, tmp_path/'run')
    return S(folder=tmp_path/'run', step=step), lambda **kw: cell(folder, tmp_path, **kw)

def bytes_of(folder): return {p.name: p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name!='lock'}

def test_a_changed_rate_is_applied_and_said(stopped):
    run,text = stopped
    again = resume(str(run.folder), text(learning_rate=1e-3), ROWS)
    rates = {e['step']: e['learning_rate'] for e in events(run.folder) if 'learning_rate' in e}
    at = run.step
    assert rates[at]==pytest.approx(5e-3*(1-(at-2)/14), rel=.1) and rates[at+1]==pytest.approx(1e-3*(15-at)/14, rel=.1)
    assert any('training.learning_rate: 0.005 → 0.001, applied: from the next step on' in n for n in again.notes) and again.status=='finished'

def test_another_split_of_the_same_rows_is_applied(stopped, whole):
    run,text = stopped
    again = resume(str(run.folder), text(per_device_train_batch_size=1, gradient_accumulation_steps=4, lora='').replace('0.1', '0.1'), ROWS)
    assert any('micro-batch: 2 × 2 → 1 × 4, applied: still 4 rows per step' in n for n in again.notes)
    assert again.step==15 and [s for s,_ in again.losses]==list(range(1, 16)) and abs(again.losses[-1][1]-whole[3][-1][1])<.2

@pytest.mark.parametrize('change,rows,said', [
    (dict(lora=', r: 8'), ROWS, r'lora.r was 16 and is 8 now \(the adapter in the checkpoint has another shape\)'),
    (dict(gradient_accumulation_steps=3), ROWS, r'rows per step was 2 × 2 = 4 and is 2 × 3 = 6 now'),
    (dict(seed=1), ROWS, 'training.seed was 42 and is 1 now'), (dict(num_train_epochs=.5), ROWS, 'the checkpoint is at step'),
    ({}, dict(ROWS, rows=tiny.rows(17)), 'training rows was 18 rows, .* and is 17 rows')])
def test_what_cannot_be_applied_is_refused_and_nothing_is_written(stopped, change, rows, said):
    run,text = stopped
    before = bytes_of(run.folder)
    with pytest.raises(QLoRAError, match=said) as e: resume(str(run.folder), text(**change), rows)
    assert len(str(e.value).splitlines())==1 and 'Put it back, or start a new run' in str(e.value) and bytes_of(run.folder)==before

def test_another_optimizer_starts_anew(stopped):
    run,text = stopped
    again = resume(str(run.folder), text(optim='adamw_8bit'), ROWS)
    assert again.status=='finished' and any('its state starts anew' in n for n in again.notes)

def test_more_steps_have_a_defined_schedule(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=4, warmup_steps=0)
    run = train(text, ROWS, name='run')
    with pytest.raises(QLoRAError, match='run is finished: 4 of 4 steps. To train longer: %qlora_train --resume .* --extend 30'): resume(str(run.folder), text, ROWS)
    again = resume(str(run.folder), text, ROWS, extend='1 epoch')
    rates = [e['learning_rate'] for e in events(run.folder) if 'learning_rate' in e]
    assert again.step==9 and again.total==9 and any('steps: 4 → 9, applied' in n for n in again.notes)
    assert rates[:4]==pytest.approx([5e-3*(1-i/4) for i in range(4)]) and rates[4:]==pytest.approx([5e-3*(1-i/9) for i in range(4, 9)])

# ---- damage, locks, secrets

def test_a_damaged_checkpoint_is_passed_over_in_words(folder, tmp_path, whole):
    text = cell(folder, tmp_path, save_steps=3)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(7, stop))
    last,before = [*reversed(checkpoints(run.folder))][:2]
    with (last/'optimizer.pt').open('r+b') as f: f.truncate(100)
    again = resume(str(run.folder), text, ROWS)
    assert any(re.fullmatch(rf'{last.name} cannot be used: optimizer.pt has 100 of [\d,]+ bytes, so {before.name}, the one before, is used', n) for n in again.notes)
    assert (final(again)[0], *final(again)[2:])==(whole[0], *whole[2:])

def test_nothing_whole_is_one_line(stopped):
    run,text = stopped
    for p in checkpoints(run.folder): (p/'adapter_model.safetensors').write_bytes(b'')
    before = bytes_of(run.folder)
    with pytest.raises(QLoRAError, match='run has no checkpoint to resume from: checkpoint-. cannot be used: adapter_model.safetensors has 0 of') as e: resume(str(run.folder), text(), ROWS)
    assert len(str(e.value).splitlines())==1 and bytes_of(run.folder)==before

def test_a_folder_of_another_format_is_one_line(stopped):
    run,text = stopped
    about = json.loads((run.folder/'run.json').read_text())
    (run.folder/'run.json').write_text(json.dumps(about | dict(format=FORMAT+1)))
    before = bytes_of(run.folder)
    with pytest.raises(QLoRAError, match=f'in format {FORMAT+1}; this version reads format {FORMAT}'): resume(str(run.folder), text(), ROWS)
    assert bytes_of(run.folder)==before

def test_a_folder_in_use_is_one_line(stopped):
    run,text = stopped
    code = f'import sys; from qlora_nb.store.folder import Lock; l = Lock({str(run.folder)!r}).take(); print("held", flush=True); sys.stdin.read()'
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(root)))
    try:
        assert p.stdout.readline()==b'held\n'
        with pytest.raises(QLoRAError, match=f'is in use by process {p.pid} on '): resume(str(run.folder), text(), ROWS)
        write_about(run.folder, status='training')
        assert runs(run.folder.parent).records[0].state=='running'
    finally:
        p.kill()
        p.wait()
    assert runs(run.folder.parent).records[0].state=='killed'
    assert resume(str(run.folder), text(), ROWS).status=='finished'

def test_a_read_only_folder_is_one_line(stopped, tmp_path):
    run,text = stopped
    at = tmp_path/'ro'
    at.mkdir()
    if subprocess.run(['mount', '--bind', run.folder, at], capture_output=True).returncode: pytest.skip('mounting is not permitted here')
    try:
        if subprocess.run(['mount', '-o', 'remount,ro,bind', at], capture_output=True).returncode: pytest.skip('remounting is not permitted here')
        with pytest.raises(QLoRAError, match='cannot be written to: Read-only file system'): resume(str(at), text(), ROWS)
    finally: subprocess.run(['umount', '-l', at])

def test_no_secret_in_any_file(folder, tmp_path, monkeypatch):
    token = 'hf_'+'Pl4nted'*5
    monkeypatch.setenv('HF_TOKEN', token)
    monkeypatch.setenv('MY_API_KEY', 'pl4nted-and-long')
    run = train(cell(folder, tmp_path, max_steps=2), ROWS, name='run')
    run.event('failed', error=f'401 for {token} and pl4nted-and-long')
    with pytest.raises(QLoRAError): train(cell(folder, tmp_path, extra=f'tracking: {{report_to: {token}}}\n'), ROWS)
    with pytest.raises(QLoRAError): train(cell(tmp_path/token, tmp_path, max_steps=2), ROWS, name='refused')
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert len(files)>15 and not [p for p in files if token.encode() in p.read_bytes() or b'pl4nted-and-long' in p.read_bytes()]
    assert '***' in (run.folder/'events.jsonl').read_text()

# ---- stopping

def test_stopped_while_starting(folder, tmp_path):
    run = train(cell(folder, tmp_path), ROWS, name='run', on_change=lambda run: run.stop('at once'))
    assert run.status=='stopped' and run.step==0 and not run.next and 'stopped before its first step' in (run.folder/'report.md').read_text()

def test_stopped_in_a_validation(folder, tmp_path, whole):
    text,seen = cell(folder, tmp_path),[]
    def watch(run):
        if run.status=='evaluating' and run.step==10 and not seen: seen.append(run.stop('test'))
    run = train(text, ROWS, name='run', on_change=watch)
    assert run.status=='stopped' and run.step==10 and [s for s,_ in run.evals]==[5]
    assert final(resume(str(run.folder), text, ROWS))==whole

def test_sigterm_saves_and_is_passed_on(folder, tmp_path, whole):
    code = f"import sys; sys.path.insert(0, {str(root/'tests')!r}); import tiny; from qlora_nb.training.start import train\n" \
        f"train({cell(folder, tmp_path)!r}, dict(rows=tiny.rows(18), held=tiny.rows(5, 100)), name='run')"
    p = subprocess.Popen([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1'), stderr=subprocess.DEVNULL)
    end = time.time()+120
    while not curves(tmp_path/'run')[0] and time.time()<end: time.sleep(.02)
    p.send_signal(signal.SIGTERM)
    assert p.wait(60)==-signal.SIGTERM and checkpoints(tmp_path/'run')
    assert final(resume(str(tmp_path/'run')))==whole

def test_killed_in_the_middle(folder, tmp_path, whole):
    text = cell(folder, tmp_path, save_steps=2)
    code = f"import sys; sys.path.insert(0, {str(root/'tests')!r}); import tiny; from qlora_nb.training.start import train\n" \
        f"train({text!r}, dict(rows=tiny.rows(18), held=tiny.rows(5, 100)), name='run')"
    p = subprocess.Popen([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1'), stderr=subprocess.DEVNULL)
    end = time.time()+120
    while not checkpoints(tmp_path/'run') and time.time()<end: time.sleep(.005)
    p.kill()
    p.wait()
    assert runs(tmp_path).records[0].state=='killed'
    assert final(resume(str(tmp_path/'run')))==whole

# ---- a second place

def test_the_mirror_is_enough_to_go_on(folder, tmp_path, whole):
    out,drive = tmp_path/'session',tmp_path/'drive'
    text = cell(folder, out).replace(f'output_dir: {out}', f'output_dir: {out}, mirror_dir: {drive}')
    train(text, ROWS, name='run', on_change=tiny.at_step(4, stop))
    shutil.rmtree(out)
    again = resume('run', text, ROWS)
    assert final(again)==whole and final(type('R', (), dict(folder=drive/'run')))==whole
