"A copy on the hub is enough to resume from: against a folder that answers as huggingface_hub does"
import fnmatch, shutil
from pathlib import Path
from types import SimpleNamespace as S
import huggingface_hub, pytest, tiny
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from qlora_nb.errors import QLoRAError
from qlora_nb.store.mirror import identity, mirror, pull, push
from qlora_nb.store.checkpoints import checkpoints
from qlora_nb.store.folder import find_run, read_about
from qlora_nb.training.saving import copy_to_mirror
from qlora_nb.training.start import resume, train
from qlora_nb.ui.runs import runs
from test_resume import ROWS, bytes_of, cell, final, stop

class Hub:
    "Repositories are folders; `fails` is raised by whatever is asked"
    def __init__(self, root): self.root,self.private,self.fails,self.commits = root,{},None,0
    def api(self): return self
    def _asked(self):
        if self.fails: raise self.fails
    def create_repo(self, repo, private=False, exist_ok=False):
        self._asked()
        assert exist_ok
        self.private.setdefault(repo, private)
    def repo_info(self, repo): return S(private=self.private[repo])
    def list_repo_files(self, repo):
        self._asked()
        return [str(p.relative_to(self.root/repo)) for p in (self.root/repo).rglob('*') if p.is_file()]
    def upload_folder(self, repo_id, folder_path, path_in_repo, allow_patterns, delete_patterns, commit_message):
        self._asked()
        at,files = self.root/repo_id/path_in_repo,[str(p.relative_to(folder_path)) for p in folder_path.rglob('*') if p.is_file()]
        sent = set(filter_repo_objects(files, allow_patterns=allow_patterns))
        for p in at.rglob('*') if at.exists() else ():
            if p.is_file() and fnmatch.fnmatch(str(n := p.relative_to(at)), delete_patterns) and str(n) not in sent: p.unlink()
        for n in sent:
            (at/n).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder_path/n, at/n)
        self.commits += 1
    def hf_hub_download(self, repo, name):
        self._asked()
        return str(self.root/repo/name)
    def snapshot_download(self, repo, allow_patterns, local_dir):
        for n in filter_repo_objects(self.list_repo_files(repo), allow_patterns=allow_patterns):
            into = Path(local_dir)/n
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root/repo/n, into)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    h = Hub(tmp_path/'hub')
    monkeypatch.setattr(huggingface_hub, 'HfApi', h.api)
    for name in ('snapshot_download', 'hf_hub_download'): monkeypatch.setattr(huggingface_hub, name, getattr(h, name))
    return h

def mirrored(folder, out, place='hf://mira/runs', **training): return cell(folder, out, **training).replace(f'output_dir: {out}', f"output_dir: {out}, mirror_dir: '{place}'")

def test_another_session_resumes_from_it(folder, tmp_path, hub):
    one = final(train(cell(folder, tmp_path/'whole', save_total_limit=2, save_steps=3), ROWS, name='run'))
    text = mirrored(folder, tmp_path/'session', save_total_limit=2, save_steps=3)
    train(text, ROWS, name='run', on_change=tiny.at_step(7, stop))
    there = hub.root/'mira'/'runs'/'run'
    assert hub.private=={'mira/runs': True} and hub.commits>=3 and [p.name for p in checkpoints(there)]==['checkpoint-6', 'checkpoint-8']
    shutil.rmtree(tmp_path/'session')
    assert final(resume('run', text, ROWS))==one and (there/'adapter'/'adapter_model.safetensors').is_file()

def test_what_is_wrong_with_the_place_is_said_before_anything_is_loaded(folder, tmp_path, hub):
    def said(text):
        with pytest.raises(QLoRAError) as e: train(text, ROWS, name='run')
        shutil.rmtree(tmp_path/'out', ignore_errors=True)
        assert len(str(e.value).splitlines())==1
        return str(e.value)
    assert 'hf://user/name' in said(mirrored(folder, tmp_path/'out', 'hf://runs'))
    hub.private['mira/open'] = False
    assert 'public' in said(mirrored(folder, tmp_path/'out', 'hf://mira/open')) and not hub.commits
    hub.fails = LocalTokenNotFoundError('Token is required')
    assert 'huggingface_hub.login()' in said(mirrored(folder, tmp_path/'out'))
    hub.fails = ConnectionError('no route')
    assert 'cannot be reached' in said(mirrored(folder, tmp_path/'out'))

def test_a_hub_that_fails_later_ends_no_run(folder, tmp_path, hub):
    def cut(run): hub.fails = ConnectionError('no route')
    run = train(mirrored(folder, tmp_path/'out', max_steps=2), ROWS, name='run', on_change=tiny.at_step(1, cut))
    assert run.status=='finished' and sum('the copy in hf://mira/runs is behind: the hub cannot be reached' in n for n in run.notes)==1

def test_two_sessions_with_runs_of_one_name_keep_both(folder, tmp_path, hub):
    "Colab's disk is empty in each session, so only the repository knows that the name is taken"
    first = train(mirrored(folder, tmp_path/'monday', max_steps=2), ROWS, name='run')
    second = train(mirrored(folder, tmp_path/'tuesday', max_steps=2, seed=7), ROWS, name='run')
    assert (first.name, second.name)==('run', 'run-2') and {p.name for p in (hub.root/'mira'/'runs').iterdir()}=={'run', 'run-2'}
    third = second.folder.rename(second.folder.parent/'run') # Began at the same moment, so that neither saw the other's name
    push(third, 'hf://mira/runs', ['run.json'])
    assert len(list((hub.root/'mira'/'runs').glob('run-*')))==2 and identity(hub.root/'mira'/'runs'/'run')==identity(first.folder)

def test_which_run_is_meant(tmp_path, hub):
    for n in ('a', 'b'):
        (hub.root/'mira'/'runs'/n).mkdir(parents=True)
        for f in ('run.json', 'config.yaml'): (hub.root/'mira'/'runs'/n/f).write_text('{}')
    with pytest.raises(QLoRAError, match='name one of a, b'): pull('', 'hf://mira/runs', tmp_path/'out')
    with pytest.raises(QLoRAError, match='there are no runs in .* or hf://mira/runs'): find_run('c', tmp_path/'out', 'hf://mira/runs')
    assert pull('a', 'hf://mira/runs', tmp_path/'out')==tmp_path/'out'/'a' and find_run('a', tmp_path/'out', 'hf://mira/runs')==tmp_path/'out'/'a'

# ---- a copy that is unfinished, further, or out of reach

@pytest.fixture
def dropped(monkeypatch):
    "What huggingface_hub raises where there is no network"
    import httpx2
    return httpx2.ConnectError('[Errno 111] Connection refused')

def test_a_network_that_is_gone_ends_no_run_and_is_one_line(folder, tmp_path, hub, dropped):
    "The error of the HTTP client is no OSError"
    assert not isinstance(dropped, (OSError, ValueError))
    def cut(run): hub.fails = dropped
    run = train(mirrored(folder, tmp_path/'out', max_steps=3, save_steps=1), ROWS, name='run', on_change=tiny.at_step(1, cut))
    assert run.status=='finished' and len(run.checkpoints)==3 and sum('is behind: the hub cannot be reached' in n for n in run.notes)==1
    for begin in (lambda: train(mirrored(folder, tmp_path/'b', max_steps=3), ROWS), lambda: resume('run', mirrored(folder, tmp_path/'c'), ROWS)):
        with pytest.raises(QLoRAError, match='the hub cannot be reached') as e: begin()
        assert len(str(e.value).splitlines())==1

def finished_behind(folder, tmp_path, hub, error):
    "A run that ended while the hub was away, after its first checkpoint was copied"
    def cut(run): hub.fails = error
    text = mirrored(folder, tmp_path/'out', max_steps=4, save_steps=2)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(3, cut))
    there = hub.root/'mira'/'runs'/'run'
    assert run.status=='finished' and [p.name for p in checkpoints(there)]==['checkpoint-2'] and not (there/'adapter').exists()
    return run,text,there

def test_the_copy_of_a_finished_run_is_completed_by_the_table_of_runs(folder, tmp_path, hub, dropped):
    run,text,there = finished_behind(folder, tmp_path, hub, dropped)
    assert runs(tmp_path/'out').said==['the copy of run in hf://mira/runs is behind: the hub cannot be reached (ConnectError)']
    hub.fails = None
    assert runs(tmp_path/'out').said==['the copy of run was unfinished and is whole now: hf://mira/runs']
    assert final(type('Copy', (), dict(folder=there)))==final(run) and read_about(there)['status']=='finished'
    commits,hub.fails = hub.commits,dropped
    assert runs(tmp_path/'out').said==[] and hub.commits==commits, 'a copy that is whole is not asked for again'

def test_the_copy_of_a_finished_run_is_completed_by_resuming_it(folder, tmp_path, hub, dropped):
    run,text,there = finished_behind(folder, tmp_path, hub, dropped)
    with pytest.raises(QLoRAError, match='run is finished: .* Note that the copy in hf://mira/runs is behind: the hub cannot be reached') as e: resume('run', text, ROWS)
    assert len(str(e.value).splitlines())==1
    hub.fails = None
    with pytest.raises(QLoRAError, match='run is finished') as e: resume('run', text, ROWS)
    assert 'behind' not in str(e.value) and final(type('Copy', (), dict(folder=there)))==final(run) and runs(tmp_path/'out').said==[]

def test_one_place_that_fails_is_asked_once(folder, tmp_path, hub, dropped):
    for name in ('one', 'two', 'three'): train(mirrored(folder, tmp_path/'out', max_steps=1), ROWS, name=name)
    for run in (tmp_path/'out').iterdir(): (run/'.copied.json').unlink()
    asked,hub.fails = [],dropped
    hub._asked = lambda: asked.append(1) or (_ for _ in ()).throw(dropped)
    assert len(runs(tmp_path/'out').said)==1 and len(asked)==1

def test_a_copy_on_the_hub_that_is_further_is_fetched(folder, tmp_path, hub):
    "Begun here, resumed in another session to its end, then taken up here again"
    whole = final(train(cell(folder, tmp_path/'whole', save_steps=3), ROWS, name='run'))
    text = mirrored(folder, tmp_path/'here', save_steps=3)
    train(text, ROWS, name='run', on_change=tiny.at_step(4, stop))
    resume('run', mirrored(folder, tmp_path/'there', save_steps=3), ROWS, on_change=tiny.at_step(11, stop))
    again = resume('run', text, ROWS)
    assert any('up to step 12 were fetched' in n for n in again.notes) and final(again)==whole

@pytest.mark.parametrize('place', ['hf://mira/runs', 'folder'])
def test_a_copy_that_is_further_is_never_replaced(folder, tmp_path, hub, dropped, place):
    "The other session ended after this one had looked"
    place = str(tmp_path/'drive') if place=='folder' else place
    there = tmp_path/'drive'/'run' if 'drive' in place else hub.root/'mira'/'runs'/'run'
    text = mirrored(folder, tmp_path/'here', place, save_steps=3)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(4, stop))
    resume('run', mirrored(folder, tmp_path/'there', place, save_steps=3), ROWS)
    before = bytes_of(there)
    for refused in (lambda: mirror(run.folder, place), lambda: copy_to_mirror(run)):
        try: said = refused()
        except OSError as e: said = str(e)
        assert 'it has checkpoint-15, which is further than this folder. Resume the run' in said
    assert bytes_of(there)==before
    again = resume('run', text, ROWS, extend='2')
    assert again.step==17 and any('up to step 15 were fetched' in n for n in again.notes)

def test_a_finished_copy_is_fetched_with_its_adapter(folder, tmp_path, hub):
    text = mirrored(folder, tmp_path/'here', max_steps=6, save_steps=2)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(3, stop))
    resume('run', mirrored(folder, tmp_path/'there', max_steps=6, save_steps=2), ROWS)
    with pytest.raises(QLoRAError, match='run is finished: 6 of 6'): resume('run', text, ROWS)
    assert final(run)==final(type('Copy', (), dict(folder=hub.root/'mira'/'runs'/'run')))

@pytest.mark.parametrize('at', range(1, 9))
def test_a_fetch_that_is_cut_off_is_completed_by_the_next(folder, tmp_path, hub, monkeypatch, at):
    "At the first, second … file operation of the fetch"
    from qlora_nb.store import mirror as module
    text = mirrored(folder, tmp_path/'here', str(tmp_path/'drive'), max_steps=6, save_steps=2)
    train(text, ROWS, name='run', on_change=tiny.at_step(3, stop))
    resume('run', mirrored(folder, tmp_path/'there', str(tmp_path/'drive'), max_steps=6, save_steps=2), ROWS)
    left = [at]
    def counted(f):
        def call(*args):
            left[0] -= 1
            if not left[0]: raise OSError(28, 'No space left on device')
            return f(*args)
        return call
    with monkeypatch.context() as m:
        for name in ('write_whole', 'copy_whole'): m.setattr(module, name, counted(getattr(module, name)))
        with pytest.raises(QLoRAError, match='is further than .* and could not be fetched: the disk is full|is finished') as e: resume('run', text, ROWS)
        assert len(str(e.value).splitlines())==1
    try: resume('run', text, ROWS)
    except QLoRAError as e: assert 'is finished' in str(e)
    assert final(type('Run', (), dict(folder=tmp_path/'here'/'run')))==final(type('Copy', (), dict(folder=tmp_path/'drive'/'run')))
