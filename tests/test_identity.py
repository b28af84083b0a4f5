"Which run a folder, a copy and a lock belong to: no run takes another one's place, and a refused resume leaves everything as it was"
import json, os, shlex, shutil, subprocess, sys, time
from pathlib import Path
import pytest, tiny
from conftest import root
from qlora_nb.errors import QLoRAError
from qlora_nb.store import folder as store
from qlora_nb.store.checkpoints import checkpoints
from qlora_nb.store.folder import Lock, go_on, read_about
from qlora_nb.store.mirror import identity
from qlora_nb.training import setup
from qlora_nb.training.start import new_run, old_run, resume, train
from qlora_nb.ui.runs import runs
from test_mirror import mirrored
from test_resume import ROWS, bytes_of, cell, final, stop

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory): return final(train(cell(folder, tmp_path_factory.mktemp('whole')), ROWS, name='run'))

@pytest.fixture(scope='module')
def other(folder, tmp_path_factory): return final(train(cell(folder, tmp_path_factory.mktemp('other'), seed=7), ROWS, name='run'))

# ---- copies

def test_three_sessions_with_empty_disks_and_two_runs_of_one_model(folder, tmp_path, whole, other):
    "Colab: the disk goes with the session, the mirror stays; each run ends in the bytes of one that was never interrupted"
    drive = tmp_path/'drive'
    def killed(out, seed, step, resume=''):
        "A process that ends without a word as soon as the copy has reached `step`"
        code = f"import sys, os; sys.path[:0] = {[str(root/'tests')]!r}; import tiny\n" \
            "from qlora_nb.store.checkpoints import checkpoints, step_of\nfrom qlora_nb.training.start import resume, train\n" \
            f"def end(run):\n    if run.step>={step}: os._exit(9)\n" \
            f"text,ns = {mirrored(folder, out, drive, save_steps=3, seed=seed)!r},dict(rows=tiny.rows(18), held=tiny.rows(5, 100))\n" \
            + (f"resume({resume!r}, text, ns, on_change=end)" if resume else "train(text, ns, on_change=end)")
        env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
        assert subprocess.run([sys.executable, '-c', code], env=env, stderr=subprocess.DEVNULL).returncode==9
        shutil.rmtree(out)
    name = Path(folder).name
    killed(tmp_path/'monday', 42, 5)
    killed(tmp_path/'tuesday', 7, 8)
    assert sorted(p.name for p in drive.iterdir())==[name, f'{name}-2']
    killed(tmp_path/'wednesday', 42, 11, resume=name)
    out = tmp_path/'thursday'
    first = resume(name, mirrored(folder, out, drive, save_steps=3), ROWS)
    second = resume(f'{name}-2', mirrored(folder, out, drive, save_steps=3, seed=7), ROWS)
    assert final(first)==whole and final(second)==other and whole[0]!=other[0]
    for run in (first, second): assert final(type('Copy', (), dict(folder=drive/run.name)))==final(run)

def test_a_checkpoint_of_another_run_is_never_left_in_a_copy(folder, tmp_path):
    "Two notebooks with folders of their own and one mirror, both at step 2"
    drive = tmp_path/'drive'
    one = train(mirrored(folder, tmp_path/'a', drive, save_steps=2), ROWS, name='run', on_change=tiny.at_step(2, stop))
    shutil.move(drive/'run', tmp_path/'aside')
    two = train(mirrored(folder, tmp_path/'b', drive, save_steps=2, seed=7), ROWS, name='run', on_change=tiny.at_step(2, stop))
    shutil.rmtree(drive/'run')
    shutil.move(tmp_path/'aside', drive/'run') # As if both had begun at one moment
    again = resume(str(two.folder), mirrored(folder, tmp_path/'b', drive, save_steps=2, seed=7), ROWS)
    assert final(type('Copy', (), dict(folder=drive/f'run-{identity(two.folder)[:6]}')))==final(again)
    assert identity(drive/'run')==identity(one.folder) and [p.name for p in checkpoints(drive/'run')]==[p.name for p in checkpoints(one.folder)]

def test_the_copy_of_a_finished_run_is_completed(folder, tmp_path):
    drive,text = tmp_path/'drive',mirrored(folder, tmp_path/'out', tmp_path/'drive', max_steps=2)
    run = train(text, ROWS, name='run')
    def cut():
        shutil.rmtree(drive/'run'/'adapter')
        about = read_about(drive/'run')
        (drive/'run'/'run.json').write_text(json.dumps(about | dict(status='copying')))
    cut()
    with pytest.raises(QLoRAError, match='is finished'): resume(str(run.folder), text, ROWS)
    assert (drive/'run'/'adapter'/'adapter_model.safetensors').is_file() and read_about(drive/'run')['status']=='finished'
    cut()
    assert runs(tmp_path/'out').said==[f'the copy of run was unfinished and is whole now: {drive/"run"}'] and not runs(tmp_path/'out').said
    assert (drive/'run'/'adapter'/'adapter_model.safetensors').is_file()

def test_what_a_copy_has_more_is_fetched_before_the_run_is_resumed(folder, tmp_path, whole):
    "The copy was resumed in another session, while this disk kept the earlier state"
    drive = tmp_path/'drive'
    text = mirrored(folder, tmp_path/'here', drive, save_steps=3)
    train(text, ROWS, name='run', on_change=tiny.at_step(4, stop))
    resume('run', mirrored(folder, tmp_path/'there', drive, save_steps=3), ROWS, on_change=tiny.at_step(11, stop))
    again = resume('run', text, ROWS)
    assert any('up to step 12 were fetched' in n for n in again.notes) and any('at step 12' in n for n in again.notes) and final(again)==whole

# ---- paths

def test_another_working_directory_changes_nothing(folder, tmp_path, whole, monkeypatch):
    "While it trains, and when it is resumed; the rows are a file with a relative name"
    for d in ('project', 'elsewhere'): (tmp_path/d).mkdir()
    monkeypatch.chdir(tmp_path/'project')
    for name,rows in ROWS.items(): Path(f'{name}.jsonl').write_text(''.join(json.dumps(row)+'\n' for row in rows))
    text = cell(folder, 'runs').replace('train: rows, validation: held', 'train: rows.jsonl, validation: held.jsonl')
    def move(run):
        monkeypatch.chdir(tmp_path/'elsewhere')
        run.stop('test')
    run = train(text, name='run', on_change=tiny.at_step(4, move))
    assert run.folder==tmp_path/'project'/'runs'/'run' and not list((tmp_path/'elsewhere').iterdir())
    assert str(run.folder) in go_on(run.folder)
    again = resume(str(run.folder))
    assert final(again)==whole and not list((tmp_path/'elsewhere').iterdir())

def test_a_project_that_moved_is_resumed(folder, tmp_path, monkeypatch):
    (tmp_path/'before').mkdir()
    monkeypatch.chdir(tmp_path/'before')
    Path('rows.jsonl').write_text(''.join(json.dumps(row)+'\n' for row in tiny.rows()))
    text = cell(folder, 'runs', max_steps=3).replace('train: rows, validation: held', 'train: rows.jsonl')
    train(text, name='run', on_change=tiny.at_step(2, stop))
    monkeypatch.chdir(tmp_path)
    (tmp_path/'before').rename(tmp_path/'after')
    monkeypatch.chdir(tmp_path/'after')
    assert resume('run', text).status=='finished'

def test_a_home_folder_is_one(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    run = new_run(cell(folder, '~/runs'), 'run')
    run.lock.drop()
    assert run.folder==tmp_path/'home'/'runs'/'run' and not (tmp_path/'~').exists()

@pytest.mark.parametrize('name,folder_name', [('my run', 'my-run'), ('-resume', 'resume'), ('a{1}', 'a-1'), ('$HOME', 'HOME'), ('a\nb', 'a-b'),
    ('..', 'run'), ('x/y', 'x-y'), ('été', 'été'), ('v1.0', 'v1.0')])
def test_the_command_to_resume_can_be_typed_whatever_the_name(folder, tmp_path, name, folder_name):
    run = new_run(cell(folder, tmp_path), name)
    run.lock.drop()
    assert run.name==folder_name and shlex.split(go_on(run.folder))[-1]==str(run.folder)

# ---- a refused resume

@pytest.fixture
def finished(folder, tmp_path):
    (tmp_path/'rows.jsonl').write_text(''.join(json.dumps(row)+'\n' for row in tiny.rows()))
    text = cell(folder, tmp_path/'runs', max_steps=2).replace('train: rows, validation: held', f'train: {tmp_path}/rows.jsonl')
    return train(text, name='run'),text

def test_rows_that_are_away_leave_the_folder_as_it_was(finished, tmp_path):
    run,text = finished
    (tmp_path/'rows.jsonl').rename(tmp_path/'away.jsonl')
    before = bytes_of(run.folder)
    with pytest.raises(QLoRAError, match='no such file'): resume(str(run.folder), text, extend='4')
    assert bytes_of(run.folder)==before

def test_a_base_that_cannot_be_loaded_leaves_the_folder_as_it_was(finished, monkeypatch):
    run,text = finished
    def offline(*args): raise QLoRAError('the hub cannot be reached')
    monkeypatch.setattr(setup, 'load_base', offline)
    before = bytes_of(run.folder)
    with pytest.raises(QLoRAError, match='cannot be reached'): resume(str(run.folder), text, extend='4')
    assert bytes_of(run.folder)==before

def test_a_stop_while_it_is_loaded_leaves_the_folder_as_it_was(finished):
    run,text = finished
    before = bytes_of(run.folder)
    again = resume(str(run.folder), text, extend='4', on_change=lambda run: run.stop('test'))
    assert again.status=='stopped' and bytes_of(run.folder)==before

def test_other_weights_under_the_same_name_are_refused(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path/'model')
    text = cell(model, tmp_path/'runs', max_steps=3)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    tiny.model_folder(model, seed=1)
    before = bytes_of(run.folder)
    with pytest.raises(QLoRAError, match='base weights was .*the adapter was trained on the earlier ones'): resume(str(run.folder), text, ROWS)
    assert bytes_of(run.folder)==before
    shutil.copytree(folder, tmp_path/'copy')
    shutil.rmtree(model)
    again = resume(str(run.folder), cell(tmp_path/'copy', tmp_path/'runs', max_steps=3), ROWS)
    assert again.status=='finished' and any(f'model: {model} → {tmp_path/"copy"}, no effect: the weights are the same' in n for n in again.notes)

@pytest.mark.parametrize('was,today,said', [('held}', 'held, learn: user}', 'data.learn was assistant and is user'), ('max_length: 64', 'max_length: 47', 'training.max_length was 64 and is 47')])
def test_the_key_that_made_the_rows_others_is_named(folder, tmp_path, was, today, said):
    text = cell(folder, tmp_path, max_steps=3)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    with pytest.raises(QLoRAError, match=said): resume(str(run.folder), text.replace(was, today), ROWS)

def test_rows_that_changed_under_their_name_are_said_to(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=3)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    with pytest.raises(QLoRAError, match='no key of the config changed, so the rows themselves did'): resume(str(run.folder), text, dict(ROWS, rows=tiny.rows(18, 1)))

def test_a_damaged_newest_checkpoint_is_replaced(folder, tmp_path):
    "One flipped byte, so that only the checksum tells; stopped at the same step again"
    text = cell(folder, tmp_path, save_steps=2)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(3, stop))
    file = run.folder/'checkpoint-4'/'optimizer.pt'
    content = bytearray(file.read_bytes())
    content[len(content)//2] ^= 1
    file.write_bytes(content)
    again = resume(str(run.folder), text, ROWS, on_change=tiny.at_step(3, stop))
    assert any('checkpoint-4 cannot be used: optimizer.pt has changed' in n for n in again.notes) and again.step==4
    last = old_run(str(run.folder), text)
    last.lock.drop()
    assert last.resumed.name=='checkpoint-4' and not any('cannot be used' in n for n in last.notes)

# ---- locks

def no_locks(monkeypatch): monkeypatch.setattr(store, '_flock', lambda handle: None)

def owner(path, host, age):
    path.write_text(json.dumps(dict(pid=12, host=host, since='2026-01-01 10:00:00')))
    os.utime(path, (time.time()-age,)*2)

def test_where_there_are_no_locks_a_machine_that_is_gone_holds_nothing(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    owner(tmp_path/'lock', 'colab-8a3f', 40)
    with pytest.raises(QLoRAError, match='in use by process 12 on colab-8a3f since .*: stop that run first. If that machine is gone, wait 5 minutes, or delete .*lock'): Lock(tmp_path).take()
    owner(tmp_path/'lock', 'colab-8a3f', 301)
    Lock(tmp_path).take().drop()

def test_where_there_are_no_locks_a_live_one_gives_signs_of_life(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    monkeypatch.setattr(store, 'SIGN_EVERY', .05)
    lock = Lock(tmp_path).take()
    os.utime(tmp_path/'lock', (0, 0))
    time.sleep(.5)
    assert time.time()-(tmp_path/'lock').stat().st_mtime<60
    lock.drop()
    os.utime(tmp_path/'lock', (0, 0))
    time.sleep(.3)
    assert (tmp_path/'lock').stat().st_mtime==0

def test_a_forked_child_that_outlives_its_parent_holds_nothing(tmp_path):
    code = f"import os, time; from qlora_nb.store.folder import Lock; lock = Lock({str(tmp_path)!r}).take(); os.fork() or time.sleep(20); os._exit(0)"
    assert subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(root)), timeout=15).returncode==0
    Lock(tmp_path).take().drop()

# ---- somebody else's folder

def test_a_hostile_folder_runs_nothing_and_is_told(folder, tmp_path):
    "Code of a model, pickles in the checkpoints with good checksums, markup in its names"
    from qlora_nb.store.files import seal
    text,mark = cell(folder, tmp_path, max_steps=3),tmp_path/'ran'
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    class Evil:
        def __reduce__(self): return os.system,(f'touch {mark}',)
    import pickle
    for name in ('optimizer.pt', 'scheduler.pt', 'rng_state.pth'): (run.folder/'checkpoint-2'/name).write_bytes(pickle.dumps(Evil()))
    seal(run.folder/'checkpoint-2')
    about = read_about(run.folder)
    (run.folder/'run.json').write_text(json.dumps(about | dict(name='<script>alert(1)</script>', resolved=about['resolved'] | {'model': '<img src=x onerror=alert(1)>'})))
    evil = run.folder.rename(tmp_path/'<img src=x onerror=alert(2)>')
    page = runs(tmp_path)._repr_html_()
    assert '<img' not in page and '<script' not in page
    with pytest.raises(QLoRAError) as e: resume(str(evil), text, ROWS)
    assert len(str(e.value).splitlines())==1 and not mark.exists()
    (evil/'config.yaml').write_text((evil/'config.yaml').read_text()+'trust_remote_code: true\n')
    with pytest.raises(QLoRAError, match='trust_remote_code'): resume(str(evil), text, ROWS)
    (evil/'config.yaml').write_text('model: !!python/object/apply:os.system ["touch %s"]\n' % mark)
    with pytest.raises(QLoRAError): resume(str(evil), text, ROWS)
    assert not mark.exists()

# ---- found by people who tried to break it

def test_an_extension_outlives_a_stop(folder, tmp_path):
    "The command that the panel prints goes on to the extended end"
    text = cell(folder, tmp_path, max_steps=3)
    run = train(text, ROWS, name='run')
    again = resume(str(run.folder), text, ROWS, extend='6', on_change=tiny.at_step(4, stop))
    assert again.status=='stopped' and again.total==9
    for today in (text, None):
        old = old_run(str(run.folder), today)
        old.lock.drop()
        assert old.config.training.max_steps==9
    assert resume(str(run.folder), text, ROWS).step==9

def test_code_of_a_model_does_not_come_in_through_a_copy(folder, tmp_path):
    text = mirrored(folder, tmp_path/'out', tmp_path/'drive', max_steps=4)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    copy = tmp_path/'drive'/'run'
    shutil.copytree(copy/'checkpoint-2', copy/'checkpoint-3')
    (copy/'config.yaml').write_text((copy/'config.yaml').read_text()+'trust_remote_code: true\n')
    with pytest.raises(QLoRAError, match='trust_remote_code'): resume(str(run.folder), text, ROWS)

def test_a_folder_that_is_there_is_never_replaced_by_a_copy(folder, tmp_path):
    text = mirrored(folder, tmp_path/'out', tmp_path/'drive', max_steps=4)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    (run.folder/'config.yaml').unlink()
    with pytest.raises(QLoRAError, match='is no whole run: it lacks config.yaml or run.json. Rename it'): resume('run', text, ROWS)
    assert checkpoints(run.folder)

def test_two_branches_of_one_run_are_not_mixed(folder, tmp_path):
    "A run folder that was copied by hand, and both trained on"
    text = mirrored(folder, tmp_path/'out', tmp_path/'drive', max_steps=6)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    shutil.copytree(tmp_path/'out', tmp_path/'other')
    config = tmp_path/'other'/'run'/'config.yaml'
    config.write_text(''.join(line for line in config.read_text().splitlines(True) if 'mirror_dir' not in line))
    resume(str(run.folder), text, ROWS, on_change=tiny.at_step(4, stop))
    away = text.replace(str(tmp_path/'out'), str(tmp_path/'other')).replace(f', mirror_dir: \'{tmp_path}/drive\'', '').replace('0.005', '0.001')
    resume(str(tmp_path/'other'/'run'), away, ROWS, on_change=tiny.at_step(3, stop))
    before,here = bytes_of(tmp_path/'other'/'run'),text.replace(str(tmp_path/'out'), str(tmp_path/'other'))
    with pytest.raises(QLoRAError, match='trained on in two ways'): resume(str(tmp_path/'other'/'run'), here, ROWS)
    assert bytes_of(tmp_path/'other'/'run')==before

def test_runs_without_an_id_are_not_one_run(tmp_path):
    from qlora_nb.store.mirror import behind, is_of, place_of
    for at in ('a', 'm'):
        (tmp_path/at/'run').mkdir(parents=True)
        (tmp_path/at/'run'/'run.json').write_text('{"format": 1}')
    assert not is_of(tmp_path/'m'/'run', tmp_path/'a'/'run') and place_of(tmp_path/'a'/'run', tmp_path/'m')!=tmp_path/'m'/'run'
    assert not behind(tmp_path/'a'/'run', tmp_path/'m')

@pytest.mark.parametrize('content', ['[1]', '5', '"x"', '{"pid": "12"}', '{"pid": 1.5}', '{"pid": 1e30}', 'x'])
def test_an_odd_lock_file_holds_nothing_for_long(tmp_path, monkeypatch, content):
    (tmp_path/'lock').write_text(content)
    Lock(tmp_path).take().drop()
    no_locks(monkeypatch)
    (tmp_path/'lock').write_text(content)
    with pytest.raises(QLoRAError, match='in use by'): Lock(tmp_path).take()
    os.utime(tmp_path/'lock', (0, 0))
    Lock(tmp_path).take().drop()

def test_an_interrupt_at_any_moment_before_the_start_leaves_no_lock(folder, tmp_path, monkeypatch):
    from qlora_nb.training import start
    text = cell(folder, tmp_path, max_steps=4)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    def interrupted(*args, **kw): raise KeyboardInterrupt
    for name,begin in (('checkpoints', lambda: old_run(str(run.folder), text)), ('write_about', lambda: new_run(text, 'new'))):
        with monkeypatch.context() as m:
            m.setattr(start, name, interrupted)
            with pytest.raises(KeyboardInterrupt): begin()
    Lock(run.folder).take().drop()
    assert not (tmp_path/'new').exists()

def test_a_folder_that_is_deleted_while_it_trains_is_said(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=8, save_steps=2)
    with pytest.raises(QLoRAError, match='its folder was moved or deleted while it trained'):
        train(text, ROWS, name='run', on_change=tiny.at_step(1, lambda run: shutil.rmtree(run.folder)))

def test_one_bad_run_hides_no_other(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=1)
    for name in ('good', 'odd', 'worse'): train(text, ROWS, name=name)
    (tmp_path/'odd'/'events.jsonl').write_bytes(b'null\n5\n{}\n\xff\xfe\n')
    about = read_about(tmp_path/'worse')
    (tmp_path/'worse'/'run.json').write_text(json.dumps(about | dict(resolved=[1], total={})))
    found = runs(tmp_path)
    assert {'good', 'odd'}<={r.name for r in found.records}
    for seal in ('[]', '{"a": 3}', '{}'):
        (tmp_path/'good'/'checkpoint-1'/'checksums.json').write_text(seal)
        assert not checkpoints(tmp_path/'good')

def test_a_copy_inside_the_run_is_refused_and_odd_places_end_no_run(folder, tmp_path):
    inside = train(mirrored(folder, tmp_path/'out', tmp_path/'out'/'run'/'x', max_steps=1), ROWS, name='run')
    assert inside.status=='finished' and any('lies inside the run' in n for n in inside.notes)
    (tmp_path/'drive').mkdir()
    (tmp_path/'drive'/'two').write_text('a file')
    text = mirrored(folder, tmp_path/'out', tmp_path/'drive', max_steps=1)
    two = train(text, ROWS, name='two')
    assert two.status=='finished' and two.name=='two-2' and runs(tmp_path/'out').records

@pytest.mark.parametrize('change,said', [(dict(cell=None), 'lacks cell'), (dict(status=5), 'lacks status'), (dict(total='9'), 'lacks total'),
    (dict(steps_per_epoch=None), 'lacks steps_per_epoch'), (dict(data=[]), 'lacks data'), (dict(resolved=[1]), 'lacks resolved'),
    (dict(versions=None), 'lacks versions'), (dict(cell='a: ['), 'the cell in .*run.json is not the config of a run')])
def test_odd_facts_of_a_run_are_one_line(folder, tmp_path, change, said):
    text = cell(folder, tmp_path, max_steps=4)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    (run.folder/'run.json').write_text(json.dumps(read_about(run.folder) | change))
    before = bytes_of(run.folder)
    for extend in ('', '3'):
        with pytest.raises(QLoRAError, match=said) as e: resume(str(run.folder), text, ROWS, extend=extend)
        assert len(str(e.value).splitlines())==1
    assert bytes_of(run.folder)==before
    Lock(run.folder).take().drop()

def test_an_odd_config_of_a_run_is_one_line(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=4)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(1, stop))
    for content,said in ((b'\xff\xfe\x00', 'config.yaml cannot be read'), (b'a: [', 'config.yaml is not the config of a run')):
        (run.folder/'config.yaml').write_bytes(content)
        with pytest.raises(QLoRAError, match=said): resume(str(run.folder), text, ROWS)
    with pytest.raises(QLoRAError, match='--micro-batch: a step has 4 rows'): resume(str(train(text, ROWS, name='b', on_change=tiny.at_step(1, stop)).folder), text, ROWS, micro_batch=0)

def test_a_damaged_run_json_ends_no_training(folder, tmp_path):
    "More steps than the pace of a run is measured over"
    text = cell(folder, tmp_path, max_steps=25, preflight='false')
    run = train(text, ROWS, name='run', on_change=tiny.at_step(3, lambda run: (run.folder/'run.json').write_text('{')))
    assert run.step==25 and any('report could not be written' in n for n in run.notes)
