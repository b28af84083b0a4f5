"The project holds together: one version, one list of dependencies, a light import, a complete wheel, nothing private"
import inspect, json, re, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import version
from statistics import median
from time import perf_counter
from zipfile import ZipFile
import pytest, tomllib
import qlora_nb
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from conftest import files, root

ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
modules = sorted('.'.join(f.relative_to('qlora_nb').with_suffix('').parts) for f in files('qlora_nb') if f.suffix=='.py' and f.stem!='__init__')
wanted = {k: [Requirement(o) for o in cfg[k].split()] for k in ('requirements', 'demo_requirements', 'dev_requirements')}
pins = [Requirement(o) for o in (root/'constraints.txt').read_text().splitlines() if not o.startswith('#')]
pinned = {canonicalize_name(o.name): Version(str(o.specifier).removeprefix('==')) for o in pins}

def python(code, **kw): return subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True, **kw).stdout

def test_one_version(): assert cfg['version']==qlora_nb.__version__

def test_pyproject_repeats_only_the_name():
    o = tomllib.loads((root/'pyproject.toml').read_text())
    assert o['project'].keys()=={'name', 'dynamic'} and o['project']['name']==cfg['lib_name']
    assert o['tool']['nbdev']['lib_path']==cfg['lib_path']

def test_changelog_knows_this_version(): assert f"\n## {cfg['version']}" in (root/'CHANGELOG.md').read_text()

@pytest.mark.parametrize('req', sum(wanted.values(), []), ids=str)
def test_tested_version_is_in_range_and_installed(req):
    pin = pinned[canonicalize_name(req.name)]
    assert pin in req.specifier
    assert Version(version(req.name)).public==str(pin), 'constraints.txt names another version than the one these tests run with'

def test_fastcore_is_only_for_authors(): assert not {'fastcore', 'nbdev', 'execnb'} & {o.name for o in wanted['requirements']}

def test_every_module_comes_from_a_notebook():
    exported = {m[1] for f in files('nbs') if f.suffix=='.ipynb' for m in [re.search(r'#\| *default_exp ([\w.]+)', (root/f).read_text())] if m}
    assert exported==set(modules)-{'_modidx', '__main__'}

@pytest.mark.parametrize('path', [f for f in files('nbs') if f.suffix=='.ipynb'], ids=str)
def test_a_notebook_keeps_no_widget_state(path):
    "Nobody can redraw it without the kernel that made it, and it is larger than all other outputs"
    assert 'widgets' not in json.loads((root/path).read_text(encoding='utf-8'))['metadata']

def test_the_readme_lists_the_public_api():
    "Each name of it with a line, and with parameters that it has"
    section = (root/'README.md').read_text().split('## Public API')[1].split('\n## ')[0]
    imported = re.search(r'^from qlora_nb import (.*)$', section, re.M)[1].split(', ')
    rows = dict(re.findall(r'^\| `(\w+)(?:\((.*?)\))?` \| \w', section, re.M))
    assert imported==list(rows)==qlora_nb.__all__
    for name,given in rows.items():
        public = getattr(qlora_nb, name)
        assert inspect.isclass(public) or inspect.isfunction(public) and {o.split('=')[0] for o in given.split(', ')}<=set(inspect.signature(public).parameters)

def test_import_is_light_and_quick():
    heavy = python("import sys, qlora_nb; print([o for o in 'torch transformers pandas matplotlib numpy pydantic'.split() if o in sys.modules])")
    assert heavy.strip()=='[]'
    def seconds(code):
        t = perf_counter()
        python(code)
        return perf_counter()-t
    pairs = [(seconds('import qlora_nb'), seconds('pass')) for _ in range(7)]
    assert median(a for a,_ in pairs)-median(b for _,b in pairs)<.3

LAZY = ('training.trainer', 'training.watch', 'training.draws', 'tasks.trainers') # Subclasses of torch's and transformers' own, imported when a run begins
@pytest.mark.parametrize('module', [o for o in modules if o not in ('__main__', 'teach.lora_layer', *LAZY)])
def test_module_imports_without_torch(module):
    out = python(f"import sys, qlora_nb.{module}; print([o for o in 'torch transformers pandas matplotlib datasets'.split() if o in sys.modules])")
    assert out.strip()=='[]'

def test_wheel_is_complete(wheel):
    inside = set(ZipFile(wheel).namelist())
    own = {f.as_posix() for f in files('qlora_nb')}
    assert any(f.startswith('qlora_nb/assets/') for f in own)
    assert own=={f for f in inside if '.dist-info/' not in f}

SECRET = re.compile(r'\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9]{30,}|\bAKIA[A-Z0-9]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY')
HOME = re.compile(r'(?<![\w.~}/-])/(work|root|home/\w+|Users/\w+)/')

def test_patterns_find_what_they_look_for():
    "The examples are put together here, so that this file itself stays clean"
    assert all(SECRET.search(o) for o in ['hf_'+'a'*34, 'token=ghp_'+'B1'*18, 'AKIA'+'Q'*16, '-----BEGIN '+'RSA PRIVATE KEY-----'])
    assert all(HOME.search(f'"{o}"') for o in ['/'+'root/x', '/'+'home/ada/x', '/'+'work/x'])
    assert not any(HOME.search(f'{o}/'+'work/x') for o in ['https://example.org', '~'])

@pytest.mark.parametrize('path', files(), ids=str)
def test_file_is_small_and_has_nothing_private(path):
    raw = (root/path).read_bytes()
    assert len(raw)<=2*2**20
    text = raw.decode(errors='ignore')
    assert not SECRET.search(text) and not HOME.search(text)
