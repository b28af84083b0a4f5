"Runs on another device, under another cell and after another run; the path of a GPU without bfloat16 with a real GradScaler and overflows that are put in"
import errno, os, stat, time, weakref
import pytest, tiny, torch
from qlora_nb.errors import QLoRAError
from qlora_nb.training import trainer
from qlora_nb.results.evaluate import generate
from qlora_nb.training.saving import RESCUE
from qlora_nb.training.start import resume, train
from test_resume import final

NS = dict(rows=tiny.rows(24))

@pytest.fixture
def scaled(monkeypatch):
    "Loss scaling as in float16, with an infinite gradient in the named steps"
    def on(steps=()):
        made = trainer.Trainer.__init__
        def init(self, run, model):
            made(self, run, model)
            accelerator = self.accelerator
            accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=64., growth_interval=10**6)
            def unscale(optimizer=None):
                for o in accelerator._optimizers: accelerator.scaler.unscale_(o.optimizer)
            accelerator.unscale_gradients = unscale
            first = next(p for n,p in model.named_parameters() if 'lora_B' in n)
            first.register_hook(lambda g: torch.full_like(g, float('inf')) if self.state.global_step+1 in steps else g)
        monkeypatch.setattr(trainer.Trainer, '__init__', init)
    yield on

def cell(folder, out, steps=4, more=''):
    return (f'model: {folder}\ndata: {{train: rows}}\ntraining: {{per_device_train_batch_size: 2, gradient_accumulation_steps: 1, max_length: 64, '
        f'max_steps: {steps}, learning_rate: 0.005, optim: adamw_torch{more}}}\noutput: {{output_dir: {out}}}\n')

@pytest.mark.parametrize('at', [(1,), (3,), (1, 2)])
def test_an_overflow_skips_its_step_and_is_counted(scaled, folder, tmp_path, at):
    scaled(at)
    run = train(cell(folder, tmp_path), NS)
    assert run.status=='finished' and f'{len(at)} of 4 steps were skipped' in ' '.join(run.notes)

def test_without_an_overflow_nothing_is_said(scaled, folder, tmp_path):
    scaled()
    assert not any('skipped' in n for n in train(cell(folder, tmp_path), NS).notes)

def test_a_run_whose_every_step_overflows_is_ended(scaled, folder, tmp_path):
    scaled(range(100))
    with pytest.raises(QLoRAError, match='10 steps in a row overflowed in float16'): train(cell(folder, tmp_path, 20), NS)

@pytest.mark.parametrize('first', [True, False])
def test_a_checkpoint_goes_to_a_gpu_with_or_without_loss_scaling(scaled, monkeypatch, folder, tmp_path, first):
    if first: scaled()
    run = train(cell(folder, tmp_path), NS, on_change=tiny.at_step(2, lambda run: run.stop('test')))
    assert run.status=='stopped'
    monkeypatch.undo() if first else scaled()
    assert resume(str(run.folder), namespace=NS).status=='finished'

def test_a_resumed_run_with_loss_scaling_ends_in_the_same_bytes(scaled, folder, tmp_path):
    scaled((2,))
    whole = train(cell(folder, tmp_path/'whole'), NS)
    run = train(cell(folder, tmp_path/'cut'), NS, on_change=tiny.at_step(2, lambda run: run.stop('test')))
    assert final(resume(str(run.folder), namespace=NS))==final(whole)

def test_the_next_run_of_a_kernel_finds_the_memory_of_the_last_one_free(folder, tmp_path):
    first = train(cell(folder, tmp_path), NS)
    base = weakref.ref(first.model)
    alive = []
    second = train(cell(folder, tmp_path), NS, on_change=lambda run: alive.append(base() is not None))
    assert second.status=='finished' and not any(alive) and first.model is None and any('was freed' in n for n in first.notes)

def test_rows_with_one_position_do_not_call_the_queries_dead(folder, tmp_path):
    "A single position attends to itself alone, whatever its query is"
    rows = [dict(text='a') for _ in range(8)]+[dict(text='hello there, this is longer')]*8
    run = train(cell(folder, tmp_path, 8).replace('max_length: 64', 'max_length: 64, train_sampling_strategy: sequential'), dict(rows=rows))
    assert run.status=='finished'

def test_what_a_resumed_run_calls_applied_is_applied(folder, tmp_path):
    rows = dict(rows=tiny.rows(24), held=tiny.rows(8, 100))
    def text(**kw): return cell(folder, tmp_path, 9, ''.join(f', {k}: {v}' for k,v in kw.items())).replace('train: rows', 'train: rows, validation: held')
    run = train(text(eval_steps=50, save_steps=100), rows, on_change=tiny.at_step(1, lambda run: run.stop('test')))
    again = resume(str(run.folder), text(eval_steps=2, save_steps=2, logging_steps=3, save_total_limit=9), rows)
    assert [s for s,_ in again.losses if s>run.step]==[s for s in (3, 6, 9) if s>run.step] and {4, 6, 8}<={s for s,_ in again.evals}
    assert {f'checkpoint-{n}' for n in (4, 6, 8)}<=set(again.checkpoints)

def test_code_of_a_model_runs_only_where_todays_cell_says_so(folder, tmp_path):
    run = train(cell(folder, tmp_path)+'trust_remote_code: true\n', NS, on_change=tiny.at_step(2, lambda run: run.stop('test')))
    for today in (None, cell(folder, tmp_path)):
        with pytest.raises(QLoRAError, match='trust_remote_code: true in today'): resume(str(run.folder), today, NS)
    assert resume(str(run.folder), cell(folder, tmp_path)+'trust_remote_code: true\n', NS).status=='finished'

def test_a_model_that_could_not_be_saved_is_not_freed(folder, tmp_path):
    first = train(cell(folder, tmp_path), NS)
    first.error,model = QLoRAError(RESCUE), first.model
    second = train(cell(folder, tmp_path), NS)
    assert first.model is model and any('stays in memory' in n for n in second.notes)

def test_a_run_whose_model_was_freed_says_where_its_adapter_is(folder, tmp_path):
    first = train(cell(folder, tmp_path), NS)
    train(cell(folder, tmp_path), NS)
    with pytest.raises(QLoRAError, match='freed when the next run began. Its adapter is in'): generate(first, 'Hello')

def test_a_name_that_cannot_be_one_locks_no_run_and_makes_no_folder(ip, folder, tmp_path):
    "`-o my-run`, with and without --resume; then the run is resumed as if nothing had been"
    from test_magics import refused
    ip.user_ns |= NS
    run = train(cell(folder, tmp_path), NS, name='keep', on_change=tiny.at_step(2, lambda run: run.stop('test')))
    ip.run_cell('%%qlora_config\n'+cell(folder, tmp_path)).raise_error()
    for line in (f'%qlora_train --resume {run.folder} -o my-run', '%qlora_train -o my-run', '%qlora_train -o ../evil'):
        assert 'cannot be a variable name' in refused(ip, line)
    assert [p.name for p in tmp_path.iterdir()]==['keep']
    assert resume(str(run.folder), namespace=NS).status=='finished'

def test_a_magic_that_fails_at_the_start_lets_go_of_the_run(ip, folder, tmp_path, monkeypatch):
    from test_magics import refused
    ip.user_ns |= NS
    run = train(cell(folder, tmp_path), NS, name='keep', on_change=tiny.at_step(2, lambda run: run.stop('test')))
    def broken(*args): raise QLoRAError('no panel')
    with monkeypatch.context() as m:
        m.setattr('qlora_nb.ui.panels.run_panel', broken)
        assert 'no panel' in refused(ip, f'%qlora_train --resume {run.folder}')
    assert resume(str(run.folder), namespace=NS).status=='finished'

def test_a_file_system_that_flushes_no_folders_takes_a_run(folder, tmp_path, monkeypatch):
    "CIFS and shared folders of virtual machines answer EINVAL"
    flush = os.fsync
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode): raise OSError(errno.EINVAL, 'Invalid argument')
        flush(handle)
    monkeypatch.setattr(os, 'fsync', fsync)
    assert train(cell(folder, tmp_path), NS).status=='finished'

def test_a_clock_that_is_set_back_changes_no_duration(folder, tmp_path, monkeypatch):
    "An hour back after the first step: the run takes seconds, and checkpoints by the minute still come"
    now = time.time
    def back(run): monkeypatch.setattr(time, 'time', lambda: now()-3600)
    text = cell(folder, tmp_path).replace('max_length: 64', 'max_length: 64, save_steps: 1000, save_minutes: 0.0001, save_total_limit: 9')
    run = train(text, NS, on_change=tiny.at_step(1, back))
    assert 0<run.seconds<600 and len(run.checkpoints)==run.step
