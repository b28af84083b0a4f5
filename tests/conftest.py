"What several test files need: the project's own files, its wheel, and a browser"
import os, shutil, signal, subprocess, sys
from pathlib import Path
import pytest, tiny

root = Path(__file__).parent.parent

def files(*paths):
    "The project's files: what git tracks, and what it would with `git add .`"
    out = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '--', *paths], cwd=root, capture_output=True, text=True, check=True)
    return [Path(o) for o in out.stdout.splitlines() if (root/o).is_file()]

# Files that take a minute or more of CPU time, the longest first: begun first, so that two workers end together
LONG = 'course colab float32 resume kernel examples killtest browser formulas trace allocator guardian page demo colab_python'.split()

def pytest_collection_modifyitems(items):
    "The long files before all others, with `--dist loadfile --no-loadscope-reorder`"
    order = {f'test_{name}.py': n for n,name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))

@pytest.fixture(autouse=True)
def interrupt():
    "KeyboardInterrupt, as in a kernel, though a shell that starts pytest in its background has SIGINT ignored, and an earlier test may have changed it"
    signal.signal(signal.SIGINT, signal.default_int_handler)

@pytest.fixture
def ip():
    "A shell with the extension"
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell()
    shell.run_line_magic('load_ext', 'qlora_nb')
    yield shell
    shell.run_line_magic('unload_ext', 'qlora_nb')

@pytest.fixture
def empty(tmp_path, monkeypatch):
    "An empty folder to work in, with a cache of its own and no hub"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('QLORA_NB_CACHE', str(tmp_path/'.cache'))
    return tmp_path

@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    "The tiny model of the tests, saved once for a worker; a test that would change it takes a copy"
    return tiny.model_folder(tmp_path_factory.mktemp('tiny'))

@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "The wheel a user would install, built from a copy, so that no old `build/` can get into it"
    src,out = tmp_path_factory.mktemp('src'),tmp_path_factory.mktemp('wheel')
    for f in files('qlora_nb', 'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        (src/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/f, src/f)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-qq', '--no-deps', '-w', out, src], check=True)
    return next(out.glob('*.whl'))

@pytest.fixture(scope='session')
def chromium():
    "The browser's path; in CI its absence is a failure, elsewhere a skip"
    if path := shutil.which('chromium') or shutil.which('google-chrome'): return path
    if os.environ.get('CI'): pytest.fail('no Chromium, which .ci/run should have installed')
    pytest.skip('no Chromium here (Debian: apt install chromium)')

def short(nb, steps=2):
    "The quickstart with a few steps and questions, and without the cell that asserts what a full run reaches"
    for c in nb.cells:
        c.source = c.source.replace('%qlora_train -o run', f'%qlora_train -o run --max-steps {steps}').replace('%qlora_compare -o result', '%qlora_compare -o result --rows 4')
    nb.cells = [c for c in nb.cells if not c.source.startswith('assert after-before')]
    return nb
