"A copy on the hub is enough to resume from: against a folder that answers as huggingface_hub does"
import fnmatch, shutil
from pathlib import Path
from types import SimpleNamespace as S
import huggingface_hub, pytest, tiny
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from qlora_nb.errors import QLoRAError
from qlora_nb.store.mirror import identity, pull, push
from qlora_nb.store.checkpoints import checkpoints
from qlora_nb.store.folder import find_run
from qlora_nb.training.start import resume, train
from test_resume import ROWS, cell, final, stop

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
