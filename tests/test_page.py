"The planner in a browser: the installed package's digits and messages, in Chromium, without a request to another host"
import functools, http.server, json, os, re, subprocess, sys, threading, time, urllib.parse
from dataclasses import replace

import nbformat, pytest
from conftest import root
from playwright.sync_api import expect, sync_playwright
from qlora_nb import parse, plan
from qlora_nb.methods.register import METHODS

sys.path.insert(0, str(root/'tools'))
import page as builder

pytestmark = [pytest.mark.slow, pytest.mark.browser]
MINUTE = 60_000
BUDGET = 10*10**6 # Bytes of a first visit
expect.set_options(timeout=MINUTE)

LLAMA = dict(model_type='llama', hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=256,
    max_position_embeddings=2048, tie_word_embeddings=False)

# ---- the page, built, served and opened

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The page; where a registry cannot be reached, CI fails and others skip"
    out = tmp_path_factory.mktemp('page')/'site'
    try: builder.build(out)
    except (OSError, subprocess.CalledProcessError) as e:
        if os.environ.get('CI'): raise
        pytest.skip(f'the parts of the page are neither in the cache nor to be had: {e}')
    (out/'test.js').write_text(TEST_WORKER)
    return out

TEST_WORKER = '''import {started} from './worker.js'
self.onmessage = async ({data}) => {
  try { self.postMessage({answer: (await started).runPython(data)}) }
  catch (e) { self.postMessage({error: e.message}) }
}'''

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url(built):
    "Its address on loopback"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()

class Window:
    "The page in a window of its own"
    def __init__(self, context, url):
        self.url,self.asked,self.errors,self.page = url,[],[],context.new_page()
        context.on('request', lambda request: self.asked.append(request.url))
        self.page.on('console', lambda m: self.errors.append(m.text) if m.type=='error' else None)
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.set_default_timeout(MINUTE)

    def open(self, address=''):
        self.page.goto(self.url+address)
        self.page.wait_for_function("performance.getEntriesByName('first answer').length")
        return self

    def planned(self, **cell):
        "Wait until the page shows the plan of a cell with these values"
        expect(self.page.locator('body')).to_have_attribute('data-state', 'planned')
        for key,value in cell.items(): expect(self.page.locator(f'[data-key$="{key}"], [data-own="{key}"]')).to_have_value(value)
        expect(self.page.locator('#plan')).not_to_have_class('old')

    def choose(self, key, value): self.page.locator(f'[data-key$="{key}"], [data-own="{key}"]').select_option(value)
    def type_model(self, name):
        field = self.page.locator('[data-key=model]')
        field.click()
        field.fill(name)
        field.press('Enter')

    def write(self, text):
        self.page.locator('#fold').evaluate('e => e.open = true')
        self.page.locator('#cell').fill(text)

    @property
    def cell(self): return self.page.locator('#cell').input_value()
    @property
    def plan(self): return self.page.locator('#plan').inner_text()

@pytest.fixture(scope='module')
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True,
            args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking'])
        yield browser
        browser.close()

@pytest.fixture(scope='module')
def shared(browser, url):
    "One window for the tests that leave nothing behind"
    context = browser.new_context(viewport=dict(width=1200, height=900), permissions=['clipboard-read', 'clipboard-write'], accept_downloads=True)
    yield Window(context, url).open()
    context.close()

@pytest.fixture
def window(shared):
    "The page as it begins; afterwards nothing failed, and no other host was asked"
    shared.page.locator('#reset').click()
    shared.planned(model='meta-llama/Llama-3.1-8B-Instruct', gpu='T4')
    yield shared
    assert not shared.errors
    assert not [a for a in shared.asked if not a.startswith((shared.url, 'blob:', 'data:'))]

# ---- what it shows

def test_the_page_shows_a_plan_before_python_has_started(browser, url):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(url)
        expect(page.locator('#plan')).to_contain_text('Llama-3.1-8B with QLoRA')
        expect(page.locator('#plan')).to_contain_text('planned for TRL 1.16')
        assert page.locator('#models option').count()==131 and page.locator('select').count()==8

def test_the_first_plan_is_what_python_makes_of_it(window, built):
    begun = (built/'index.html').read_text()
    html = window.page.locator('#plan').inner_html()
    same = window.page.evaluate('text => new DOMParser().parseFromString(text, "text/html").getElementById("plan").innerHTML', begun)
    assert html==same

def test_controls_change_the_cell_and_the_plan(window):
    window.choose('gpu', 'RTX 4090')
    window.choose('r', '64')
    window.choose('max_length', '2048')
    window.planned(gpu='RTX 4090', r='64', max_length='2048')
    assert parse(window.cell)==parse('model: meta-llama/Llama-3.1-8B-Instruct\nhardware: {gpu: RTX 4090}\nlora: {r: 64}\ntraining: {max_length: 2048}')
    assert window.page.title()=='Llama-3.1-8B on RTX 4090' and 'RTX 4090' in window.plan and 'r=64' in window.plan

def test_a_misspelt_key_gets_a_suggestion_with_its_line(window):
    window.write('model: meta-llama/Llama-2-7b-hf\nhardware: {gpu: T4}\nloraa: {r: 8}\n')
    expect(window.page.locator('#errors')).to_have_text("line 3, loraa: unknown key 'loraa'. Did you mean 'lora'?")
    window.write('model: meta-llama/Llama-2-7b-hf\nhardware: {gpu: T5}\n')
    expect(window.page.locator('#errors')).to_contain_text("Did you mean 'T4'?")
    window.write('model: meta-llama/Llama-2-7b-hf\nhardware: {gpu: L4}\n')
    window.planned(model='meta-llama/Llama-2-7b-hf', gpu='L4')
    expect(window.page.locator('#errors')).to_be_hidden()

def test_a_choice_that_cannot_be_changes_nothing(window):
    window.type_model('llama 2 7b')
    expect(window.page.locator('#errors')).to_contain_text("'llama 2 7b' cannot be loaded")
    window.page.locator('h1').click()
    expect(window.page.locator('[data-key=model]')).to_have_value('meta-llama/Llama-3.1-8B-Instruct')
    assert parse(window.cell).model=='meta-llama/Llama-3.1-8B-Instruct'
    window.choose('gpu', 'L4')
    window.planned(gpu='L4', model='meta-llama/Llama-3.1-8B-Instruct')

def test_what_gives_way_to_a_choice_is_said(window):
    window.write('model: Llama-2-7B\nhardware: {gpu: T4}\nquantization: {bits: none}\nlora: {init_lora_weights: pissa}\n')
    window.planned(bits='none')
    expect(window.page.locator('#notes')).to_have_text(re.compile('^lora.init_lora_weights: pissa changes the base weights too'))
    window.choose('bits', '4')
    window.planned(bits='4')
    expect(window.page.locator('#notes')).to_contain_text('lora.init_lora_weights from cell is ignored')

# ---- models that are no presets

def test_a_config_json_can_be_pasted(window):
    window.write(json.dumps(LLAMA | dict(_name_or_path='someone/tiny-llama')))
    window.planned(model='someone/tiny-llama')
    assert window.page.title()=='tiny-llama on T4' and parse(window.cell).model=='someone/tiny-llama'
    window.write('{"a": 1}')
    expect(window.page.locator('#errors')).to_contain_text('it is not the config.json of a model')

def test_the_hub_is_asked_on_a_click_alone(browser, url, tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(LLAMA))
    with browser.new_context() as context:
        hub = 'https://huggingface.co/someone/other-llama/resolve/main/config.json'
        context.route('https://huggingface.co/**', lambda r: r.fulfill(json=LLAMA, headers={'access-control-allow-origin': '*'}) if r.request.url==hub else r.fulfill(status=404))
        window = Window(context, url).open()
        window.type_model('someone/other-llama')
        box = window.page.locator('#asked')
        expect(box).to_contain_text('someone/other-llama is not one of the models that this page knows')
        assert not [a for a in window.asked if 'huggingface' in a]
        box.get_by_text('Read it from huggingface.co').click()
        window.planned(model='someone/other-llama')
        expect(box).to_be_hidden()
        assert [a for a in window.asked if not a.startswith((url, 'blob:', 'data:'))]==[hub]
        native = plan(parse(window.cell).with_(model=str(tmp_path)))
        assert f'{native.budget.trainable:,} of {native.budget.parameters:,} parameters are trained' in window.page.locator('#plan').text_content()
        again = Window(context, url).open(window.page.url.removeprefix(url)) # The address holds the config.json
        assert again.page.title()=='other-llama on T4' and not [a for a in again.asked if 'huggingface' in a]

def test_a_model_that_the_hub_does_not_have(browser, url):
    with browser.new_context() as context:
        context.route('https://huggingface.co/**', lambda r: r.fulfill(status=401, headers={'access-control-allow-origin': '*'}))
        window = Window(context, url).open()
        window.type_model('meta-llama/Llama-3.1-8B-Instrukt')
        window.page.get_by_text('Read it from huggingface.co').click()
        expect(window.page.locator('#errors')).to_contain_text('the model is gated or private, or there is none of that name')
        window.page.get_by_text('Did you mean meta-llama/Llama-3.1-8B-Instruct?').click()
        window.planned(model='meta-llama/Llama-3.1-8B-Instruct')

# ---- what it gives away

def test_the_address_reopens_the_plan(window, browser):
    cell = 'model: Qwen/Qwen3-8B\n# for the team\nhardware: {gpu: A100 80GB}\nlora: {r: 32, target_modules: [q_proj, v_proj]}\n'
    window.write(cell)
    window.planned(model='Qwen/Qwen3-8B', gpu='A100 80GB', r='32')
    window.page.locator('#tokens').fill('2.5M')
    window.page.locator('h1').click()
    expect(window.page.locator('#tokens')).to_have_value('2,500,000')
    window.planned(model='Qwen/Qwen3-8B')
    address = window.page.url.removeprefix(window.url)
    assert urllib.parse.parse_qs(address.removeprefix('#'))==dict(cell=[cell], tokens=['2500000'])
    with browser.new_context() as context:
        other = Window(context, window.url).open(address)
        assert other.cell==cell and other.plan==window.plan and 'million tokens' not in other.plan

def test_copy_as_config(window):
    window.choose('r', '8')
    window.planned(r='8')
    window.page.locator('#copy').click()
    expect(window.page.locator('#said')).to_contain_text('Copied')
    text = window.page.evaluate('() => navigator.clipboard.readText()')
    assert text.startswith('%%qlora_config\nmodel: meta-llama/Llama-3.1-8B-Instruct\n') and parse(text)==parse(window.cell) and parse(text).lora.r==8

def downloaded(window):
    with window.page.expect_download() as download: window.page.locator('#notebook').click()
    return download.value.suggested_filename,nbformat.read(download.value.path(), 4)

def test_the_notebook_goes_on_from_the_plan(window):
    name,nb = downloaded(window)
    nbformat.validate(nb)
    code = [c.source for c in nb.cells if c.cell_type=='code']
    assert name=='qlora-Llama-3.1-8B-Instruct.ipynb' and [c.split()[0] for c in code]==['%pip', '%load_ext', '%%qlora_config', '%qlora_plan', '%qlora_data', '%qlora_train']
    assert parse(code[2])==parse(window.cell) and '# data: {train: tickets.jsonl}' in code[2]
    window.write('%%qlora_config\nmodel: demo\ndata: {train: demo}\n')
    window.planned(model='demo')
    code = [c.source for c in downloaded(window)[1].cells]
    assert '%%qlora_config\nmodel: demo\ndata: {train: demo}' in code

# ---- the modules of the page, without a browser

ABSENT = ('torch', 'transformers', 'numpy', 'matplotlib', 'IPython', 'ipywidgets', 'datasets', 'psutil', 'trl') # In the browser
NOT_THERE = ('fcntl', 'resource', 'termios', 'grp', 'pwd')

def test_the_planner_needs_nothing_that_a_browser_lacks(tmp_path):
    builder.planner(tmp_path)
    code = f'''
import sys, importlib.util
sys.modules.update(dict.fromkeys({NOT_THERE}))
assert not [name for name in {ABSENT} if importlib.util.find_spec(name)]
import answer
answer.replies('paste', text='{json.dumps(LLAMA)}', cell='model: demo')
found = answer.replies('answer', cell='model: Llama-2-7B\\nhardware: {{gpu: T4}}')
assert (found['title'], found['verdict'])==('Llama-2-7B on T4', 'fits')
print(answer.plan('Llama-2-7B', gpu='T4').device_bytes)
'''
    assert builder.bare(tmp_path, code).strip()==str(plan('Llama-2-7B', gpu='T4').device_bytes)
    packed = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*')}
    assert 'qlora_nb/planning/planner.py' in packed and not [p for p in packed if p.startswith(('qlora_nb/ui', 'qlora_nb/training')) or 'demo' in p]

@pytest.fixture
def replies(tmp_path, monkeypatch):
    "Its one function, from a folder of its own"
    builder.answers(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'answer', raising=False)
    import answer
    yield answer.replies
    del sys.modules['answer']

def test_a_changed_method_takes_its_keys_along(replies, monkeypatch):
    method = replace(METHODS['lora'], name='other', bases=('none',))
    monkeypatch.setitem(METHODS, 'other', method)
    cell = 'model: demo\nhardware: {gpu: T4}\nquantization: {bits: 8}\nlora: {r: 64}\n'
    found = replies('answer', cell=cell, change=dict(method='other'))
    assert found['cell']=='model: demo\nmethod: other\nhardware:\n  gpu: T4\n' and found['shown']['quantization.bits']=='none'
    assert replies('answer', cell=cell, change={'quantization.bits': 'none'})['shown']['quantization.bits']=='none'
    four = replies('answer', cell='model: demo\nquantization: {bnb_4bit_quant_type: fp4}\n', change={'quantization.bits': '8'})
    assert parse(four['cell'])==parse('model: demo\nquantization: {bits: 8}')

@pytest.mark.parametrize('name', ['../up', '/etc', 'a/../../b', 'a b'])
def test_a_config_json_is_kept_only_under_a_name_that_a_model_can_have(replies, tmp_path, name):
    before = sorted(tmp_path.rglob('*'))
    assert replies('paste', text=json.dumps(LLAMA | dict(_name_or_path=name)), cell='model: demo\n')['errors'][0]['key']=='model'
    assert replies('answer', cell='model: demo\n', kept={name: LLAMA})['errors'] and sorted(tmp_path.rglob('*'))==before

@pytest.mark.parametrize('text,said', [('{', 'it is not JSON'), ('{"a": 1}', 'has no `model_type`'), (json.dumps(dict(model_type='unheard-of')), "is a 'unheard-of' model")])
def test_what_is_no_config_json_is_said(replies, text, said):
    assert said in replies('paste', text=text, cell='model: demo\n')['errors'][0]['text']

def test_a_model_without_a_name_gets_one(replies):
    found = replies('paste', text=json.dumps(LLAMA), cell='model: demo\nhardware: {gpu: T4}\n')
    assert found['model']=='my-model' and found['kept']=={'my-model': LLAMA} and found['verdict']=='fits'

# ---- the same digits

DIGITS = '''
import json
from dataclasses import replace
from qlora_nb.facts.hardware import gpus
from qlora_nb.facts.models import known_names, presets
from qlora_nb.planning.fit import Machine, fit
from qlora_nb.planning.planner import job_for, plan
from qlora_nb.planning.time import cost

def of_gpu(planned, device):
    job = job_for(planned.config, planned.architecture, device)
    found,price = fit(job, Machine(device)),cost(job, device)
    return device.name, found.tensors, found.reserved, found.device, found.verdict, found.binding, found.paged, price.hours, price.dollars

def of_model(name):
    planned = plan(name, gpu='T4')
    options = [(o.name, o.budget.total, o.budget.trainable, o.fit.tensors, o.fit.device) for o in planned.options]
    return name, planned.components, planned.phases, options, [of_gpu(planned, device) for device in gpus()]

def whole(cell):
    answer = plan(cell).to_dict()
    return {k: v for k,v in answer.items() if k not in ('notes', 'job')}

CELLS = ['model: Llama-2-7B\\nhardware: {gpu: T4}\\n', 'model: mistralai/Mixtral-8x7B-v0.1\\nhardware: {gpu: H100 80GB}\\n',
    'model: google/gemma-2-9b\\nhardware: {gpu: RTX 4090}\\nquantization: {bits: 8}\\n', 'model: Qwen/Qwen3-8B\\nhardware: {gpu: A100 40GB}\\nlora: {r: 64}\\n']
digits = json.dumps([[of_model(a.hub_id) for a in presets()], [whole(cell) for cell in CELLS]])
'''

def test_every_preset_on_every_gpu_has_the_digits_of_the_installed_package(browser, url):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f'{url}style.css')
        page.set_default_timeout(4*MINUTE)
        run = '''code => new Promise((done, fail) => {
            const worker = new Worker('test.js', {type: 'module'})
            worker.onerror = e => fail(e.message)
            worker.onmessage = ({data: {answer, error}}) => { if (error) fail(Error(error)); else if (answer) done(answer) }
            worker.postMessage(code) })'''
        begun = time.time()
        models,cells = json.loads(page.evaluate(run, DIGITS+'digits'))
        print(f'{len(models)} models × {len(models[0][4])} GPUs in Pyodide: {time.time()-begun:.1f} s')
    here = {}
    exec(DIGITS, here)
    our_models,our_cells = json.loads(here['digits'])
    assert len(models)==131 and {len(m[4]) for m in models}=={len(here['gpus']())}
    assert models==our_models and cells==our_cells

# ---- what it takes

def test_a_first_visit_is_small_and_asks_no_other_host(browser, url, built):
    with browser.new_context() as context:
        sizes = {}
        context.on('response', lambda r: sizes.update({r.url: int(r.headers.get('content-length', 0))} if r.url.startswith(url) else {}))
        window = Window(context, url).open()
        assert set(sizes)>={url, *(url+name for name in ('worker.js', 'planner.packed', 'python_stdlib.zip.packed', 'pyodide.asm.wasm.packed'))}
        assert not [a for a in window.asked if not a.startswith((url, 'blob:', 'data:'))] and not window.errors
    print(f'transferred: {sum(sizes.values())/1e6:.2f} MB of {builder.transferred(built)/1e6:.2f} MB')
    assert 5*10**6<sum(sizes.values())<=BUDGET and not [n for n in built.rglob('*') if 'demo' in n.name]
    terms = (built/'licences.txt').read_text()
    said = terms.lower().replace('_', '-')
    assert not [name for name,version,*_ in builder.locked() if f"{name.lower().replace('_', '-')} {version}" not in said]
    assert terms.count('MIT License')>=4 and 'MPL-2.0' in terms

def test_the_page_itself_refuses_other_hosts(window):
    blocked = window.page.evaluate("() => fetch('https://example.org/').then(() => 'let through', e => 'refused')")
    window.errors.clear() # The browser reports what its policy refused
    window.asked.clear()
    assert blocked=='refused'

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_shows_the_whole_width(browser, url, scheme):
    with browser.new_context(viewport=dict(width=390, height=844), color_scheme=scheme) as context:
        window = Window(context, url).open()
        assert window.page.evaluate('() => document.documentElement.scrollWidth')==390
        assert window.page.locator('body').evaluate("e => getComputedStyle(e).backgroundColor")==dict(light='rgb(255, 255, 255)', dark='rgb(17, 17, 17)')[scheme]

def test_a_page_that_is_opened_from_a_folder_says_what_to_do(browser, built):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f'file://{built}/index.html')
        expect(page.locator('#status')).to_contain_text('python -m http.server')
        expect(page.locator('#plan')).to_contain_text('Llama-3.1-8B with QLoRA')
