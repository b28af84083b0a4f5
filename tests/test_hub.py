"What an error of the hub means, by its class and by those of its causes: as the libraries that are installed raise them"
import sys, subprocess
from pathlib import Path
import datasets.exceptions, httpx, pytest, requests
from huggingface_hub import errors
from qlora_nb.store.cache import cache_dir
from qlora_nb.store.hub import causes, explain, meaning

def response(status=404):
    answer = requests.Response()
    answer.status_code = status
    return answer

def of(name, status=404): return getattr(errors, name)('a long\nstory', response=response(status))
def after(error, cause):
    "`raise error from cause`"
    error.__cause__ = cause
    return error

MEANINGS = [
    ('gated', of('GatedRepoError', 403)), ('missing', of('RepositoryNotFoundError', 401)), ('revision', of('RevisionNotFoundError')),
    ('entry', of('RemoteEntryNotFoundError')), ('offline', errors.LocalEntryNotFoundError('x')), ('offline', errors.OfflineModeIsEnabled('x')),
    ('offline', ConnectionError('x')), ('offline', httpx.ConnectError('x')), ('offline', httpx.ReadTimeout('x')), ('offline', requests.ConnectionError('x')),
    ('offline', requests.Timeout('x')), ('refused', errors.LocalTokenNotFoundError('x')), ('refused', of('HfHubHTTPError', 403)), ('refused', of('HfHubHTTPError', 401)),
    ('', of('HfHubHTTPError', 500)), ('invalid', errors.HFValidationError('x')), ('missing', datasets.exceptions.DatasetNotFoundError('x')),
    ('gated', datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub.")), ('script', RuntimeError('Dataset scripts are no longer supported, but found x.py')),
    ('configurations', ValueError("BuilderConfig 'fr' not found. Available: ['en', 'de']")), ('', OSError('offline 401 gated')), ('', ValueError('x'))]

@pytest.mark.parametrize('wrap', ['bare', 'from', 'while handling'])
@pytest.mark.parametrize('word,error', MEANINGS, ids=[f'{w}-{type(e).__name__}' for w,e in MEANINGS])
def test_the_class_decides_however_deep(word, error, wrap):
    if wrap=='from': error = after(OSError('cannot load'), after(RuntimeError('inner'), error))
    if wrap=='while handling':
        outer = OSError('cannot load')
        outer.__context__ = error
        error = outer
    assert meaning(error)==word

def test_what_was_hidden_on_purpose_counts_for_nothing():
    try:
        try: raise ConnectionError('x')
        except ConnectionError: raise ValueError('bad config') from None
    except ValueError as e: assert causes(e)==[e] and meaning(e)==''

@pytest.mark.parametrize('kind', ['model', 'dataset', 'repository'])
@pytest.mark.parametrize('word,error', MEANINGS, ids=[f'{w}-{type(e).__name__}' for w,e in MEANINGS])
def test_every_answer_is_one_line_that_can_be_acted_on(word, error, kind):
    said = explain(error, 'org/name', kind, 'v9', 'config.json')
    assert said and '\n' not in said and '{' not in said.replace('{name: …}', '') and not said.endswith('.')
    if word=='gated' and kind!='repository': assert f"https://huggingface.co/{'datasets/' if kind=='dataset' else ''}org/name" in said

@pytest.mark.parametrize('error,said', [
    (of('RepositoryNotFoundError', 401), 'not allowed: run `huggingface_hub.login()`'), (of('RepositoryNotFoundError'), 'the hub has no repository org/name that you may see'),
    (of('HfHubHTTPError', 403), 'not allowed: run'), (httpx.ConnectTimeout('x'), 'the hub cannot be reached (ConnectTimeout)'), (of('HfHubHTTPError', 500), 'a long'), (OSError(), 'OSError')])
def test_a_repository_to_write_to(error, said): assert explain(error, 'org/name', 'repository').startswith(said)

def test_only_who_asked_for_a_file_hears_of_it():
    assert explain(of('RemoteEntryNotFoundError'), 'm', file='config.json')=='m has no config.json on the hub'
    assert explain(of('RemoteEntryNotFoundError'), 'm')=='m cannot be loaded: a long'

def test_transformers_wraps_what_it_was_told():
    from transformers import AutoTokenizer
    with pytest.raises(OSError) as e: AutoTokenizer.from_pretrained('nobody/no-such-model', local_files_only=True)
    assert meaning(e.value)=='offline'

def test_nothing_is_imported_to_compare_classes():
    code = "import sys; from qlora_nb.store.hub import explain; explain(KeyError('x'), 'm'); print([m for m in ('huggingface_hub', 'datasets', 'httpx', 'requests', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'

def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv('QLORA_NB_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert cache_dir()==Path.home()/'.cache'/'qlora_nb'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_dir()==tmp_path/'qlora_nb'
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path/'own'))
    assert cache_dir()==tmp_path/'own'
