"Colab's Python and Colab's notebook packages, without torch: load, config, errors, plan, explore, unload"
import hashlib, os, re, shutil, subprocess
import nbformat, pytest
from conftest import root
from test_colab import Env, kernel, pins

pytestmark = pytest.mark.slow
VERSION = '3.13'
# The notebook's own packages, and what the package needs before any training: nothing that brings torch or numpy
LIGHT = set('ipython ipykernel ipywidgets widgetsnbextension jupyter_client traitlets matplotlib-inline notebook pyzmq tornado nbclient psutil pydantic PyYAML'.split())
WIDGET = 'application/vnd.jupyter.widget-view+json'
HEAVY = 'torch transformers peft trl datasets accelerate bitsandbytes numpy pandas matplotlib'.split()

def said(*command, **env):
    "What a command prints, or nothing where it is not there or fails"
    if not shutil.which(command[0]): return ''
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ|env)
    return '' if out.returncode else out.stdout.strip()

def interpreter():
    "The path of a Python of Colab's version: on PATH, or one that pyenv or uv has installed"
    own = 'import ensurepip, sys; print(sys.executable)' # One that can make an environment
    if path := said(f'python{VERSION}', '-c', own): return path
    for version in said('pyenv', 'versions', '--bare').split():
        if version.startswith(VERSION+'.') and (path := said(f'python{VERSION}', '-c', own, PYENV_VERSION=version)): return path
    return said('uv', 'python', 'find', '--no-python-downloads', VERSION)

@pytest.fixture(scope='module')
def colab(wheel):
    if not (python := interpreter()): pytest.skip(f'no Python {VERSION} with venv, which Colab has: neither on PATH nor in pyenv or uv')
    env = Env(root/f'.venv-colab-{VERSION}')
    light = [pin for pin in pins.read_text().splitlines() if re.split('==', pin)[0] in LIGHT]
    assert len(light)==len(LIGHT)
    key,now = env.path/'key',hashlib.sha256('\n'.join([python, *light]).encode()).hexdigest()
    if not key.exists() or key.read_text()!=now:
        shutil.rmtree(env.path, ignore_errors=True)
        subprocess.run([python, '-m', 'venv', env.path], check=True)
        env.pip('install', '-qq', *light)
        key.write_text(now)
    env.pip('install', '-qq', '--no-deps', '--force-reinstall', wheel)
    return env

CONFIG = """%%qlora_config -o config
model: meta-llama/Llama-2-7b-hf
data: {train: demo}
hardware: {gpu: T4}
training: {max_length: 1024}"""
BROKEN = """%%qlora_config -o broken
model: demo
data: {train: demo}
lora: {rnk: 8}
trainig: {}"""
VERSIONS = """import sys, IPython, ipykernel, ipywidgets, traitlets
(sys.version_info[:2], *(m.__version__ for m in (IPython, ipykernel, ipywidgets, traitlets)))"""
INSTALLED = f"""from importlib.util import find_spec
[name for name in {HEAVY} if find_spec(name)]"""
MOVE = """from ipywidgets import Widget
slider = next(w for w in Widget.widgets.values() if 'Slider' in type(w).__name__)
slider.index = (slider.index+1)%len(slider.options)"""
CELLS = dict(versions=VERSIONS, heavy=INSTALLED, load='%load_ext qlora_nb', config=CONFIG, broken=BROKEN, kept="'broken' in globals()", again=CONFIG,
    plan='%qlora_plan -o budget', figures='(budget.verdict, len(budget.options), budget.tensors_bytes)',
    preset='%qlora_plan Llama-2-13B --gpu "RTX 4090"', wrong='%qlora_plan demo --gpu T5',
    explore='%qlora_plan --explore', move=MOVE, untouched='%qlora_plan --explore', unload='%unload_ext qlora_nb',
    gone="[m for m in get_ipython().magics_manager.magics['line'] if m.startswith('qlora')]")

@pytest.fixture(scope='module')
def shown(colab, tmp_path_factory):
    "The outputs of each cell, by its name"
    at = tmp_path_factory.mktemp('colab')
    may_fail = dict(tags=['raises-exception'])
    cells = [nbformat.v4.new_code_cell(source, metadata=may_fail) for source in CELLS.values()]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), at/'light.ipynb')
    return dict(zip(CELLS, (c['outputs'] for c in kernel(colab, at, at/'light.ipynb')['cells'])))

def value(outputs): return ''.join(outputs[-1]['data']['text/plain'])
def errors(outputs): return [(o['ename'], o['evalue']) for o in outputs if o['output_type']=='error']

def test_it_is_colabs_python_and_kernel_without_torch(shown):
    assert value(shown['versions'])=="((3, 13), '7.34.0', '6.17.1', '7.7.1', '5.7.1')" and value(shown['heavy'])=='[]'

def test_the_config_is_a_table(shown):
    assert shown['load']==[] and 'training.max_length' in value(shown['config']) and '<table' in ''.join(shown['config'][-1]['data']['text/html'])

def test_errors_have_line_key_and_suggestion(shown):
    (name,message), = errors(shown['broken'])
    assert name=='QLoRAError' and value(shown['kept'])=='False'
    assert "line 4, lora.rnk: unknown key 'rnk' in lora. Did you mean 'r'?" in message and "Did you mean 'training'?" in message
    (name,message), = errors(shown['wrong'])
    assert name=='QLoRAError' and message.endswith("Did you mean 'T4'?")

def test_the_plan_is_priced_in_full(shown):
    from qlora_nb import plan
    here = plan(CONFIG.split('\n', 1)[1])
    assert value(shown['figures'])==str((here.verdict, len(here.options), here.tensors_bytes))
    for cell,model in (('plan', 'Llama-2-7B'), ('preset', 'Llama-2-13B')):
        assert model in value(shown[cell]).splitlines()[0] and '<table' in ''.join(shown[cell][-1]['data']['text/html'])

def test_the_explorer_moves(shown):
    (controls,page),(_,untouched) = ([o['data'] for o in shown[cell]] for cell in ('explore', 'untouched'))
    assert WIDGET in controls and not errors(shown['move']) and 'Llama-2-7B' in ''.join(page['text/plain'])
    assert page['text/html']!=untouched['text/html']

def test_unloading_leaves_no_magic(shown): assert not shown['unload'] and value(shown['gone'])=='[]'
def test_only_what_should_fail_fails(shown): assert [cell for cell,outputs in shown.items() if errors(outputs)]==['broken', 'wrong']
