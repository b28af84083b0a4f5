"The planner as a static page: Pyodide, and the modules that a plan needs, in a folder that any web server can serve: python tools/page.py"
import ast, gzip, hashlib, importlib.util, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, urllib.request, zipfile
from html import escape
from pathlib import Path

root = Path(__file__).parent.parent
source,lock = root/'docs'/'page',root/'docs'/'page'/'lock.txt'
sys.path.insert(0, str(root))
from qlora_nb import __version__
from qlora_nb.config.words import choices
from qlora_nb.facts.hardware import gpus
from qlora_nb.facts.libraries import PLANNED
from qlora_nb.facts.models import known_names, presets
from qlora_nb.methods.register import METHODS
from qlora_nb.render import fmt_bytes
from qlora_nb.store.cache import cache_dir

NPM = 'https://registry.npmjs.org/{name}/-/{name}-{version}.tgz'
PLATFORMS = ('pyemscripten_2026_0_wasm32', 'manylinux2014_x86_64') # The second for PyYAML, of which only the Python files are taken

# ---- what the page is made of beside this package

def locked()->list: # (name, version, kind of hash, hash)
    "The lines of the lock file"
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith('#')]
    return [re.fullmatch(r'([\w-]+)==([\d.]+) --hash=(\w+):(\w+)', line).groups() for line in lines]

def is_whole(path, kind, digest): return path.is_file() and hashlib.new(kind, path.read_bytes()).hexdigest()==digest

def from_npm(name, version, kind, digest, folder):
    path = folder/f'{name}-{version}.tgz'
    if is_whole(path, kind, digest): return path
    with urllib.request.urlopen(NPM.format(name=name, version=version), timeout=60) as answer: path.write_bytes(answer.read())
    if is_whole(path, kind, digest): return path
    path.unlink()
    sys.exit(f'{path.name} from the npm registry does not have the {kind} of {lock.relative_to(root)}')

def in_folder(wheels, folder): # → path of each wheel that is there, whole
    there = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.glob('*.whl')}
    return [there[digest] for *_,digest in wheels if digest in there]

def from_pypi(wheels, folder):
    "The wheels of the lock file, by pip, which checks their hashes"
    if len(found := in_folder(wheels, folder))==len(wheels): return found
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as wanted:
        wanted.writelines(f'{name}=={version} --hash={kind}:{digest}\n' for name,version,kind,digest in wheels)
        wanted.flush()
        python = ['--python-version', '3.14', '--implementation', 'cp', '--abi', 'cp314', *(f'--platform={name}' for name in PLATFORMS)]
        how = ['--no-deps', '--only-binary=:all:', '--require-hashes', *python, '-d', folder, '-r', wanted.name]
        subprocess.run([sys.executable, '-m', 'pip', 'download', '-qq', '--disable-pip-version-check', *how], check=True)
    return in_folder(wheels, folder)

def fetch()->tuple: # Path of Pyodide's archive, paths of the wheels
    "What the lock file names, from the cache or from the registries"
    folder = cache_dir()/'page'
    folder.mkdir(parents=True, exist_ok=True)
    pyodide,*wheels = locked()
    return from_npm(*pyodide, folder),from_pypi(wheels, folder)

# ---- the modules

LEFT_OUT = re.compile(r'pydantic/(v1/|mypy|_internal/_mypy)|_yaml/|.*\.(pyi|typed|json)$|.*\.dist-info/')
UNUSED = ('_pyrepl idlelib ensurepip lib2to3 multiprocessing pydoc_data sqlite3 tkinter turtledemo unittest venv wsgiref xmlrpc doctest pdb pydoc '
    'mailbox pickletools smtplib ftplib imaplib tarfile wave webbrowser zipapp turtle cProfile profile pstats antigravity this').split()

def imported(path)->set: # Names of modules
    "What a module of this package, or the page's own, imports when it is imported itself"
    package = 'qlora_nb.'+'.'.join(path.relative_to(root/'qlora_nb').parts[:-1]) if path.is_relative_to(root/'qlora_nb') else ''
    found = set()
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        above = package.rstrip('.').split('.')[:len(package.rstrip('.').split('.'))-node.level+1] if node.level else []
        base = '.'.join([*above, *([node.module] if node.module else [])])
        found |= {base, *(f'{base}.{alias.name}' for alias in node.names)}
    return {name for name in found if name.split('.')[0]=='qlora_nb'}

def module_file(name): # → its path, or None where the name is no module
    path = root.joinpath(*name.split('.'))
    return next((p for p in (path/'__init__.py', path.with_suffix('.py')) if p.is_file()), None)

def modules(path)->list: # Paths, that of the packages included
    "Every module of this package that a file needs, by its imports"
    found,todo = set(),[path]
    while todo:
        for name in imported(todo.pop()):
            parts = name.split('.')
            new = {module_file('.'.join(parts[:n])) for n in range(1, len(parts)+1)}-found-{None}
            found |= new
            todo += new
    return sorted(found)

def install_line()->str: # As in the README, where the repository has no address
    "The line that installs this package in a notebook"
    url = os.environ.get('REPO_URL')
    return f'%pip install -q git+{url}' if url else '%pip install -q ./qlora_nb  # a checkout of the repository: there is no release on PyPI yet'

def planner(folder):
    "The modules and data files of a plan"
    assets = [root/'qlora_nb'/'assets'/name for name in ('gpus.json', 'models.json')]
    for path in (*modules(source/'answer.py'), *assets):
        to = folder/path.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    answers(folder)

def answers(folder):
    "The page's own module, and what it reads beside itself"
    shutil.copy(source/'answer.py', folder)
    (folder/'presets.json').write_text(json.dumps(known_names()), encoding='utf-8')
    (folder/'install.txt').write_text(install_line(), encoding='utf-8')

def stage(folder, archive, wheels):
    "Lay out Python's own modules and those of the planner, as Python finds them"
    library,site = folder/'library',folder/'site'
    with tarfile.open(archive) as tar:
        for name in ('pyodide.mjs', 'pyodide.asm.mjs', 'pyodide.asm.wasm', 'python_stdlib.zip', 'pyodide-lock.json'): tar.extract(f'package/{name}', folder, filter='data')
    with zipfile.ZipFile(folder/'package'/'python_stdlib.zip') as z:
        z.extractall(library, [n for n in z.namelist() if n.split('/')[0].removesuffix('.py') not in UNUSED])
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as z:
            z.extractall(site, [n for n in z.namelist() if not LEFT_OUT.match(n) and not ('linux' in wheel.name and n.endswith('.so'))])
    planner(site)
    return library,site

PYTHON = 'Pyodide {version}, MPL-2.0, https://github.com/pyodide/pyodide, with CPython and its standard library, PSF-2.0, https://github.com/python/cpython'

def licences(wheels)->str:
    "What the page contains of others, and on which terms"
    texts = [PYTHON.format(version=locked()[0][1])]
    for wheel in wheels:
        name,version = wheel.name.split('-')[:2]
        with zipfile.ZipFile(wheel) as z:
            own = [z.read(n).decode() for n in z.namelist() if re.search(r'\.dist-info/(licenses/)?LICENSE[^/]*$', n)]
        texts.append('\n\n'.join([f'{name} {version}', *own]))
    return f"\n\n{'-'*80}\n\n".join(texts)

# ---- compiled, so that the browser need not

def node()->str|None: # Its path
    "The Node that Playwright brings"
    try: from playwright._impl._driver import compute_driver_executable
    except ImportError: return None
    return compute_driver_executable()[0]

def key_of(path, version): return hashlib.sha256(f'{version} {path.name} '.encode()+path.read_bytes()).hexdigest()

def compiled(folders, pyodide, version):
    "Put bytecode in place of the sources: from the cache, or made by the very Python that will read it"
    cache,sources = cache_dir()/'page'/'bytecode',[p for folder in folders for p in sorted(folder.rglob('*.py'))]
    cache.mkdir(exist_ok=True)
    keys = {p: key_of(p, version) for p in sources}
    todo = {key: p for p,key in keys.items() if not (cache/f'{key}.pyc').is_file()}
    if todo:
        with tempfile.TemporaryDirectory(dir=cache) as work:
            for key,p in todo.items(): shutil.copy(p, Path(work)/f'{key}.py')
            names = {key: str(p.relative_to(next(f for f in folders if p.is_relative_to(f)))) for key,p in todo.items()}
            (Path(work)/'names.json').write_text(json.dumps(names))
            subprocess.run([node(), root/'tools'/'page_compile.mjs', pyodide, work], check=True)
            for key in todo: os.replace(Path(work)/f'{key}.pyc', cache/f'{key}.pyc')
    for p,key in keys.items():
        shutil.copy(cache/f'{key}.pyc', p.with_suffix('.pyc'))
        p.unlink()

# ---- packed

def packed(path, data): path.write_bytes(gzip.compress(data, 9, mtime=0))

def files_in(folder): return [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in sorted(folder.rglob('*')) if p.is_file()]

def as_zip(folder)->bytes: # Not compressed: the whole file is, later
    "A folder as Python's `zipimport` reads it"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_STORED) as z:
        for name,data in files_in(folder): z.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()

def as_list(folder)->bytes: # The length of the head in 4 bytes, the head as JSON, the files one after the other
    "A folder as `worker.js` reads it"
    files = files_in(folder)
    head = json.dumps([(name, len(data)) for name,data in files]).encode()
    return b''.join([len(head).to_bytes(4), head, *(data for _,data in files)])

# ---- the HTML

FIRST = 'model: meta-llama/Llama-3.1-8B-Instruct\nhardware: {gpu: T4}\n'
NEEDED = ('pydantic', 'pydantic_core', 'yaml', 'typing_extensions', 'typing_inspection', 'annotated_types') # Beside the standard library

def bare(site, code):
    "What a Python prints that has only the planner and what the planner needs, as the browser will"
    with tempfile.TemporaryDirectory() as work:
        for name in NEEDED:
            spec = importlib.util.find_spec(name)
            found = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
            (Path(work)/found.name).symlink_to(found)
        for path in site.iterdir():
            if path.stem not in NEEDED: (Path(work)/path.name).symlink_to(path)
        env = dict(PATH=os.environ['PATH'], PYTHONPATH=work, PYTHONDONTWRITEBYTECODE='1', HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES='')
        return subprocess.run([sys.executable, '-S', '-c', code], cwd=work, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout

def options(values, chosen=None):
    "Options of a control: values, or pairs of value and label"
    pairs = [v if isinstance(v, tuple) else (str(v), f'{v:,}' if isinstance(v, int) else v) for v in values]
    return ''.join(f'<option value="{escape(v)}"{" selected" if v==str(chosen) else ""}>{escape(label)}</option>' for v,label in pairs)

BITS = {'4': '4-bit: QLoRA', '8': '8-bit', 'none': '16-bit'}
SWITCH = dict(auto='auto', true='on', false='off')

def filled(site)->str:
    "The page with its controls and the plan that it begins with"
    first = json.loads(bare(site, f"import json, answer; print(json.dumps(answer.replies('answer', cell={FIRST!r})))"))
    now = first['shown']
    known = [(g.name, f'{g.name} ({fmt_bytes(g.memory)} usable)') for g in gpus() if g.memory]
    def powers(low, high): return [2**n for n in range(low, high+1)]
    values = dict(
        count=len(presets()), model=escape(now['model']), cell=escape(FIRST), plan=first['html'], version=__version__,
        versions=' and '.join(PLANNED.values()), models=''.join(f'<option value="{escape(a.hub_id)}">' for a in presets()),
        gpus=options([*known, ('auto', 'not named')], now['hardware.gpu']), methods=options([(n, METHODS[n].label) for n in choices('method')], now['method']),
        one=' hidden'*(len(choices('method'))==1),
        bits=options([(b, BITS[b]) for b in choices('quantization.bits')], now['quantization.bits']), ranks=options(powers(0, 8), now['lora.r']),
        lengths=options(powers(7, 15), now['training.max_length']), batches=options(powers(0, 6), now['training.per_device_train_batch_size']),
        checkpointing=options([(c, SWITCH[c]) for c in ('auto', 'true', 'false')], now['training.gradient_checkpointing']),
        optimizers=options(choices('training.optim'), now['training.optim']))
    return re.sub(r'{{(\w+)}}', lambda m: str(values[m[1]]), (source/'index.html').read_text(encoding='utf-8'))

def build(out):
    "Make the page in a folder"
    archive,wheels = fetch()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        library,site = stage(Path(work), archive, wheels)
        (out/'index.html').write_text(filled(site), encoding='utf-8')
        package = Path(work)/'package'
        if node(): compiled((library, site), package, archive.stem)
        else: print('Playwright is not installed, so the modules stay sources: the page will start some seconds later')
        (out/'licences.txt').write_text(licences(wheels), encoding='utf-8')
        packed(out/'python_stdlib.zip.packed', as_zip(library))
        packed(out/'planner.packed', as_list(site))
        for name in ('pyodide.asm.wasm', 'pyodide.asm.mjs'): packed(out/f'{name}.packed', (package/name).read_bytes())
        shutil.copy(package/'pyodide.mjs', out)
        info = json.loads((package/'pyodide-lock.json').read_text())['info']
        (out/'pyodide-lock.json').write_text(json.dumps(dict(info=info, packages={}))) # No package of Pyodide's own is loaded
    for name in ('page.js', 'worker.js', 'style.css'): shutil.copy(source/name, out)

OR_NOT = '--or-not' # Where a registry cannot be reached, that is said, and no error

def transferred(folder)->int: # Bytes of all files, as they are sent by a server that compresses nothing
    "What a first visit loads"
    return sum(path.stat().st_size for path in folder.iterdir())

def main(words):
    out = Path(next((w for w in words if w!=OR_NOT), root/'_page'))
    try: build(out)
    except (OSError, subprocess.CalledProcessError) as e:
        shutil.rmtree(out, ignore_errors=True)
        if OR_NOT in words: return print(f'The page of the planner is left out: {e}')
        raise
    print(f'{out}: {transferred(out)/1e6:.1f} MB in all, as it is sent')

if __name__=='__main__': main(sys.argv[1:])
