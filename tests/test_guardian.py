"Memory that is not enough, NaN, a disk that is full: each for real where it can be"
import builtins, errno, json, math, os, shutil, subprocess, sys
from contextlib import contextmanager
import pytest, tiny
from conftest import root
from qlora_nb.errors import QLoRAError
from qlora_nb.store.checkpoints import checkpoints, curves, events
from qlora_nb.store.files import flaw
from qlora_nb.training.start import current, resume, train
from test_resume import ROWS, cell

# ---- memory

CAPPED = '''
import json, resource, sys
sys.path.insert(0, TESTS)
import tiny
from qlora_nb.errors import QLoRAError
from qlora_nb.training.start import train, current
rows = [dict(prompt=f'who is on the mat {i} '+'x'*200, completion='the cat') for i in range(64)]
def cap(run):
    if run.status!=WHEN or getattr(run, 'capped', False) or (WHEN=='saving' and run.step<1): return
    run.capped = True
    import os
    size = int(open('/proc/self/statm').read().split()[0])*os.sysconf('SC_PAGE_SIZE')
    resource.setrlimit(resource.RLIMIT_AS, (size+ROOM, resource.RLIM_INFINITY))
try: train(CELL, dict(rows=rows, held=tiny.rows(2)), name=NAME, on_change=cap if ROOM else None)
except QLoRAError as e: print('ERROR', e)
run = current()
t = run.config.training
print(json.dumps(dict(status=run.status, step=run.step, notes=run.notes, losses=run.losses, split=[t.per_device_train_batch_size, t.gradient_accumulation_steps], next=run.next)))
'''

# The C library hands address space back only for blocks that it mapped one by one: hence the low threshold.
def capped(folder, out, name, room, when='trying', on_oom='shrink', **training):
    "A process that trains with `room` bytes of address space beyond what it had when its status was `when`"
    text = cell(folder, out, per_device_train_batch_size=32, gradient_accumulation_steps=1, max_length=256, max_steps=2, on_oom=on_oom, **training).replace('0.1', '0')
    given = dict(TESTS=str(root/'tests'), WHEN=when, ROOM=room, CELL=text, NAME=name)
    o = subprocess.run([sys.executable, '-c', ''.join(f'{k} = {v!r}\n' for k,v in given.items())+CAPPED], capture_output=True, text=True, timeout=600,
        env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', MALLOC_MMAP_THRESHOLD_='65536'))
    assert o.returncode==0, o.stderr[-3000:]
    return [l for l in o.stdout.splitlines() if l.startswith('ERROR')],json.loads(o.stdout.splitlines()[-1])

def squeezed(folder, out, name, words, **kw):
    "The same with less and less room until `words` are said: what a process needs differs from machine to machine"
    for mib in (150, 125, 105, 85, 65):
        said,r = capped(folder, out, f'{name}{mib}', mib*2**20, **kw)
        if any(words in n for n in [*said, *r['notes']]): break
    return said,r

TOLERANCE = 1e-3 # The sums of a step are added up in another order

def test_memory_that_is_not_enough_is_met_with_smaller_micro_batches(folder, tmp_path):
    _,free = capped(folder, tmp_path, 'free', 0)
    said,r = squeezed(folder, tmp_path, 'capped', 'not enough memory before step 1')
    assert not said and r['status']=='finished' and r['split'][0]<32 and r['split'][0]*r['split'][1]==32
    note = next(n for n in r['notes'] if n.startswith('not enough memory before step 1, on the longest batch: 32 rows of up to'))
    assert '32 rows of up to 2' in note and '. The plan has ' in note and 'still 32 rows per step' in note
    assert len(r['losses'])==len(free['losses'])==2 and all(abs(a[1]-b[1])<TOLERANCE for a,b in zip(r['losses'], free['losses']))

def test_asked_it_ends_with_the_smaller_setting_in_words(folder, tmp_path):
    said,r = squeezed(folder, tmp_path, 'ask', 'not enough memory', on_oom='ask')
    assert len(said)==1 and r['status']=='failed' and r['split']==[32, 1]
    assert 'Smaller: 16 rows × 2 passes per step instead of 32 × 1, still 32 rows per step. To continue: training.per_device_train_batch_size: 16' in said[0]

def test_in_the_middle_of_a_run_no_step_is_lost(folder, tmp_path):
    said,r = squeezed(folder, tmp_path, 'middle', 'at step 2', when='saving', save_steps=1, preflight='false')
    assert not said and r['status']=='finished' and r['split'][0]<32 and [s for s,_ in r['losses']]==[1, 2]
    assert any(n.startswith('not enough memory at step 2: 32 rows') for n in r['notes'])

# ---- NaN

def test_a_rate_that_is_far_too_high_is_stopped_before_it_spoils_the_adapter(folder, tmp_path):
    import torch
    text = cell(folder, tmp_path, learning_rate=1, lr_scheduler_type='constant', max_grad_norm=0, optim='sgd', save_steps=1)
    poison = []
    def watch(run):
        if run.step==3 and not poison:
            poison.append(1)
            with torch.no_grad(): run.trainer.model.get_base_model().model.norm.weight[0] = math.nan
    with pytest.raises(QLoRAError, match='the loss is NaN or infinite at step 4, on training rows') as e: train(text, ROWS, name='run', on_change=watch)
    run = current()
    assert len(str(e.value).splitlines())==1 and 'The last good checkpoint is checkpoint-3' in str(e.value) and run.next.endswith(str(run.folder))
    assert math.isnan(run.losses[-1][1]) and run.losses[-1][0]==4 and math.isnan(curves(run.folder)[0][-1][1]) is True or events(run.folder)[-2]['event']=='not a number'
    assert resume(str(run.folder), text, ROWS).status=='finished'

def test_the_rows_of_a_bad_batch_are_named(folder, tmp_path):
    "A row whose answer holds a character that the broken model cannot embed"
    import torch
    from safetensors.torch import load_file, save_file
    bad = tmp_path/'bad'
    shutil.copytree(folder, bad)
    w = load_file(bad/'model.safetensors')
    w['model.embed_tokens.weight'][tiny.tokenizer().convert_tokens_to_ids('Z')] = math.inf
    save_file(w, bad/'model.safetensors', dict(format='pt'))
    rows = tiny.rows(12)
    rows[7] = dict(prompt='who is on the Z', completion='the cat')
    text = cell(bad, tmp_path, preflight='false', num_train_epochs=1, per_device_train_batch_size=1)
    with pytest.raises(QLoRAError, match=r'NaN or infinite at step \d, on training rows 8 \("\[INST\] who is on the Z') as e: train(text, dict(rows=rows, held=tiny.rows(2, 100)), name='run')
    run = current()
    assert run.checkpoints==([f'checkpoint-{run.step}'] if run.step else []) and all(not flaw(p) for p in checkpoints(run.folder))
    assert torch.isfinite(torch.cat([p.flatten() for p in run.trainer.model.parameters() if p.requires_grad])).all() and str(e.value).count('\n')==0

# ---- the disk

@contextmanager
def full_at(n, under):
    "The `n`-th thing written under a folder finds the disk full; yields a list of what was written"
    import torch
    from peft import peft_model
    seen = []
    def failing(f, at, writes=lambda *a, **k: True):
        def g(*a, **k):
            if str(under) in str(a[at] if len(a)>at else '') and writes(*a, **k):
                seen.append(f.__name__)
                if len(seen)==n: raise OSError(errno.ENOSPC, 'No space left on device', str(a[at]))
            return f(*a, **k)
        return g
    with pytest.MonkeyPatch.context() as m:
        m.setattr(builtins, 'open', failing(open, 0, lambda f, mode='r', *a, **k: any(c in mode for c in 'wax+')))
        m.setattr('io.open', builtins.open)
        m.setattr(os, 'mkdir', failing(os.mkdir, 0))
        m.setattr(os, 'replace', failing(os.replace, 0))
        m.setattr(torch, 'save', failing(torch.save, 1))
        m.setattr(peft_model, 'safe_save_file', failing(peft_model.safe_save_file, 1))
        yield seen

def test_a_disk_that_is_full_at_any_point_of_a_checkpoint(folder, tmp_path):
    run = train(cell(folder, tmp_path, max_steps=2), ROWS, name='run')
    t,n,failed = run.trainer,0,[]
    while True:
        n += 1
        t.state.global_step = 3
        with full_at(n, run.folder) as seen:
            try: t._save_checkpoint(t.model)
            except QLoRAError as e: failed.append(str(e))
        if len(seen)<n: break
        whole = [p.name for p in checkpoints(run.folder) if not flaw(p)]
        assert whole in (['checkpoint-2'], ['checkpoint-2', 'checkpoint-3']) and not (run.folder/'.saving').exists()
        shutil.rmtree(run.folder/'checkpoint-3', ignore_errors=True)
        run.checkpoints = ['checkpoint-2']
    assert len(failed)>=8 and all('the disk is full. checkpoint-2 is complete' in f and len(f.splitlines())==1 for f in failed), '\n'.join(failed)
    assert {'mkdir', 'save', 'save_file', 'replace'}<=set(seen) and not flaw(run.folder/'checkpoint-3')

def test_a_disk_that_is_full_at_any_point_of_saving_the_adapter(folder, tmp_path):
    run = train(cell(folder, tmp_path, max_steps=2), ROWS, name='run')
    before,n,failed = (run.folder/'adapter'/'adapter_model.safetensors').read_bytes(),0,0
    while True:
        n += 1
        with full_at(n, run.folder) as seen:
            try: run.save()
            except QLoRAError as e:
                failed += 1
                assert 'the adapter could not be written: the disk is full' in str(e)
        if len(seen)<n: break
        if (run.folder/'adapter').exists(): assert (run.folder/'adapter'/'adapter_model.safetensors').read_bytes()==before
    assert failed>=5 and run.save().is_dir()

# ---- best and enough

def test_the_best_adapter_is_kept_and_training_ends_early(folder, tmp_path):
    text = cell(folder, tmp_path, learning_rate=.3, lr_scheduler_type='constant', num_train_epochs=30, early_stopping_patience=2,
        load_best_model_at_end='true', save_total_limit=1)
    run = train(text, ROWS, name='run')
    assert run.status=='finished' and run.step<run.total and any('ended early: the validation loss was lowest at step' in n for n in run.notes)
    best = run.folder/f'checkpoint-{run.best}'
    assert (best/'adapter_model.safetensors').read_bytes()==(run.folder/'adapter'/'adapter_model.safetensors').read_bytes()
    assert {p.name for p in checkpoints(run.folder)}=={best.name, f'checkpoint-{run.step}'}

def test_a_panel_that_fails_does_not_end_the_run(folder, tmp_path):
    def bad(run): raise ValueError('no such widget')
    run = train(cell(folder, tmp_path, max_steps=2), ROWS, on_change=bad)
    assert run.status=='finished' and any('a panel failed and was taken off: ValueError' in n for n in run.notes)

def test_a_tracker_that_is_missing_is_named(folder, tmp_path):
    with pytest.raises(QLoRAError, match='line .*tracking.report_to: wandb is not installed here: run `%pip install wandb`'):
        train(cell(folder, tmp_path, extra='tracking: {report_to: wandb}\n'), ROWS)
