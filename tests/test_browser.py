"What a person sees and does in JupyterLab: panels that move, ■ and Stop, the keyboard, both themes, and the notebook opened again"
import json, re, shutil
import nbformat, pytest, tiny
from conftest import root
from lab import MINUTE, Lab, Server, cells
from playwright.sync_api import expect, sync_playwright

pytestmark = [pytest.mark.slow, pytest.mark.browser]
expect.set_options(timeout=MINUTE)
CONTRAST = '''() => {
  const ctx = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true})
  const rgba = c => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); return [...ctx.getImageData(0, 0, 1, 1).data] }
  const over = (top, a, below) => below.map((b, i) => top[i]*a+b*(1-a))
  const light = c => c.map(v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4).reduce((s, v, i) => s+v*[.2126, .7152, .0722][i], 0)
  const chain = e => e ? [...chain(e.parentElement), e] : []
  const bad = []
  for (const e of document.querySelectorAll('.qnb *, .qnb-screen *')) {
    const text = [...e.childNodes].filter(n => n.nodeType===3).map(n => n.data).join('').trim()
    if (!text || !e.checkVisibility() || e.closest('style,title')) continue
    const enough = e.ariaHidden ? 3 : 4.5
    let back = [255, 255, 255], opacity = 1
    for (const a of chain(e)) {
      const s = getComputedStyle(a), c = rgba(s.backgroundColor)
      back = over(c, c[3]/255, back); opacity *= s.opacity
    }
    const style = getComputedStyle(e), c = rgba(e.ownerSVGElement ? style.fill : style.color)
    const [a, b] = [light(over(c, c[3]/255*opacity, back)), light(back)].sort((x, y) => y-x)
    if ((a+.05)/(b+.05) < enough) bad.push([text.slice(0, 40), Math.round(100*(a+.05)/(b+.05))/100])
  }
  return bad }'''

# What JupyterLab itself says now and then when a kernel goes away, or when an output is replaced while its widget closes
LABS_OWN = ('restore the debugger state', "'removeChild' on 'Node'")

@pytest.fixture(scope='module')
def window(chromium, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp('lab'))
    try:
        server.wait()
        with sync_playwright() as playwright:
            window = Lab(server, playwright, chromium)
            yield window
            window.close()
    finally: server.stop()

@pytest.fixture
def lab(window):
    "The window for one test; afterwards no kernel is left, and nothing may have failed in the browser"
    window.errors.clear()
    yield window
    window.shutdown()
    assert not [e for e in window.errors if not any(own in e for own in LABS_OWN)]

def opened(lab, name, *sources):
    cells(lab.server.root/name, *sources)
    lab.open(name)

@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "The cells before training: far more steps than anybody waits for"
    cfg = (f"%%qlora_config\nmodel: {tiny.model_folder(tmp_path_factory.mktemp('model'))}\ndata: {{train: rows, validation: rows}}\n"
        'training: {per_device_train_batch_size: 2, gradient_accumulation_steps: 1, max_length: 64, max_steps: 5000}')
    return ['%load_ext qlora_nb', f'rows = {tiny.rows()!r}', cfg]

def events(lab, run): return [json.loads(l) for l in (lab.server.root/'runs'/run/'events.jsonl').read_text().splitlines()]
def moves(lab, i): assert lab.step(i, after=lab.step(i, after=0))>1
def stopped(lab, i, run):
    "A panel that has become a report, and a checkpoint of its very step"
    report = lab.output(i).locator('.qnb').last
    expect(report).to_contain_text('stopped, can be resumed')
    expect(lab.output(i).locator('.widget-html')).to_have_count(0)
    n,last = lab.step(i),events(lab, run)[-1]
    assert (last['event'], last['step'])==('stopped', n) and (lab.server.root/'runs'/run/f'checkpoint-{n}'/'trainer_state.json').exists()

def legible(lab):
    "Text at 4.5:1 or better in both themes"
    for theme in ('Dark', 'Light'):
        lab.theme(theme)
        assert lab.page.evaluate(CONTRAST)==[], theme

def again(lab, name):
    "Open a saved notebook with a fresh kernel"
    lab.shutdown()
    lab.open(name)
    everything = lab.page.locator('.jp-Notebook').inner_text()
    assert 'stopped, can be resumed' in everything and 'Error displaying widget' not in everything and 'model not found' not in everything

def test_before_training(lab):
    shutil.copy(root/'nbs'/'examples'/'quickstart.ipynb', lab.server.root/'quickstart.ipynb')
    lab.open('quickstart.ipynb')
    for i in range(4): lab.run(i)
    expect(lab.output(1).last).to_contain_text('training.learning_rate')
    expect(lab.output(2)).to_contain_text('SmolLM2-135M')
    expect(lab.output(3)).to_contain_text('Llama-2-7B with QLoRA trains on a T4')
    expect(lab.output(3)).to_contain_text('107.8 GB')
    folds = lab.output(3).locator('details')
    for key,fold in zip(('Enter', ' '), (folds.nth(1), folds.last)):
        expect(fold).not_to_have_attribute('open', '')
        fold.locator('summary').press(key)
        expect(fold).to_have_attribute('open', '')
    legible(lab)
    with lab.narrow(): assert lab.page.evaluate("() => [...document.querySelectorAll('.qnb')].every(e => e.getBoundingClientRect().right<=innerWidth)")

def test_interrupt_and_open_again(lab, prepared):
    "■ ends a run in good order; its report is there with a fresh kernel, and in the copy that somebody else, who does not trust it yet, opens"
    opened(lab, 'run.ipynb', *prepared, '%qlora_train -o run')
    for i in range(3): lab.run(i)
    was = lab.prompt(3)
    lab.start(3)
    moves(lab, 3)
    assert lab.prompt(3).strip()=='[*]:'
    lab.toolbar('interrupt').click()
    lab.finished(3, was)
    stopped(lab, 3, 'run')
    assert [o['why'] for o in events(lab, 'run') if o['event']=='stop']==['interrupt']
    lab.save()
    path = lab.server.root/'run.ipynb'
    nb = nbformat.read(path, 4)
    assert 'state' in nb.metadata.get('widgets', dict(state={})) and path.stat().st_size<100_000
    assert not [d for c in nb.cells for o in c.outputs for d in o.get('data', ()) if 'widget' in d]
    again(lab, path.name)
    report = lab.output(3).locator('.qnb')
    expect(report).to_contain_text('stopped, can be resumed')
    expect(report.locator('svg')).to_be_visible()
    legible(lab)
    nb.cells[0].source += '\n'
    nbformat.write(nb, lab.server.root/'sent.ipynb')
    again(lab, 'sent.ipynb')
    expect(lab.output(3)).to_contain_text('Loss of run')
    expect(lab.output(3).locator('svg')).to_have_count(0)

def test_stop_button(lab, prepared):
    opened(lab, 'stop.ipynb', *prepared, '%qlora_train --background -o mouse', '%qlora_train --background -o keys', '%qlora_data', '%qlora_compare --rows 4 --max-new-tokens 8')
    for i in range(4): lab.run(i)
    moves(lab, 3)
    lab.button(3).click()
    stopped(lab, 3, 'mouse')
    lab.run(4)
    moves(lab, 4)
    lab.page.locator('.jp-CodeCell').nth(4).locator('.qnb h4').click()
    for _ in range(10):
        lab.page.keyboard.press('Tab')
        if lab.button(4).evaluate('b => b===document.activeElement'): break
    expect(lab.button(4)).to_be_focused()
    lab.page.keyboard.press(' ')
    stopped(lab, 4, 'keys')
    assert [o['why'] for r in ('mouse', 'keys') for o in events(lab, r) if o['event']=='stop']==['button', 'button']
    for i in (5, 6): lab.run(i)
    expect(lab.output(5)).to_contain_text('underlined tokens are in the loss')
    expect(lab.output(6)).to_contain_text('fine-tuned model')
    legible(lab)

def test_refusal(lab):
    opened(lab, 'wrong.ipynb', '%load_ext qlora_nb', '%%qlora_config\nmodel: demo\ndata: {train: demo}\nlora: {rnk: 8}')
    for i in range(2): lab.run(i)
    assert lab.output(1).inner_text().strip()=="QLoRAError: line 4, lora.rnk: unknown key 'rnk' in lora. Did you mean 'r'?"

WIDE = """([i, css]) => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')[i].querySelectorAll(css)]
  .filter(e => e.scrollWidth>e.clientWidth+1 && e.clientWidth && getComputedStyle(e).display!=='inline').map(e => e.outerHTML.slice(0, 80))"""

def wide(lab, i):
    "What a cell's screen would need a sideways scroll bar for"
    return lab.page.evaluate(WIDE, [i, '.jp-OutputArea-output, .qnb-screen, .qnb-screen :not(em)'])

def test_the_plan_is_one_screen(lab):
    "The answer stands first, prices are no formulas, text can be read in both themes with all folds open, and nothing scrolls sideways"
    cell = "from qlora_nb import plan\nplan('Llama-2-7B', gpu='T4', tokens=[100+n%900 for n in range(2000)])"
    opened(lab, 'plan.ipynb', cell)
    lab.run(0)
    screen = lab.output(0).locator('.qnb-screen')
    expect(screen.locator('h3')).to_have_text(re.compile(r'✓ Fits Llama-2-7B with QLoRA trains on a T4 in about [\d.]+ hours, for \$[\d.]+ to \$[\d.]+\.'))
    expect(screen.locator('tr.me th').last).to_have_text('T4 your GPU')
    expect(screen.locator('.cap').first).to_be_visible()
    assert lab.output(0).locator('mjx-container').count()==0
    lab.page.evaluate("document.querySelectorAll('.qnb-screen details').forEach(d => d.open = true)")
    legible(lab)
    assert not wide(lab, 0)
    for width in (1000, 700, 600):
        with lab.narrow(width): assert not wide(lab, 0), width

def test_an_untrusted_plan_keeps_its_words_and_bars(lab):
    "JupyterLab's sanitiser drops the sheet, and what is hidden stays hidden"
    opened(lab, 'trusted.ipynb', "from qlora_nb import plan\nplan('Llama-2-7B', gpu='T4')")
    lab.run(0)
    lab.save()
    saved = json.loads((lab.server.root/'trusted.ipynb').read_text())
    data = saved['cells'][0]['outputs'][0]['data']
    data['text/html'] = ''.join(data['text/html'])+'<p>changed elsewhere</p>' # No signature fits it
    (lab.server.root/'untrusted.ipynb').write_text(json.dumps(saved))
    lab.open('untrusted.ipynb')
    output = lab.output(0)
    expect(output.locator('h3')).to_contain_text('✓ Fits Llama-2-7B')
    assert output.locator('style').count()==0 and output.locator('.bar i').first.bounding_box()['width']>20
    expect(output.locator('.cap').first).to_be_hidden()
    expect(output.locator('summary').first).to_be_visible()

def test_the_explorer(lab):
    cell = '%%qlora_config\nmodel: meta-llama/Llama-2-7b-hf\ndata: {train: demo}\nhardware: {gpu: T4}'
    opened(lab, 'explorer.ipynb', '%load_ext qlora_nb', cell, '%qlora_plan --explore')
    for i in range(3): lab.run(i)
    beside,still = lab.output(2).first,lab.output(2).nth(1)
    answer = beside.locator('h3')
    expect(answer).to_contain_text('Llama-2-7B with QLoRA trains on a T4')
    expect(still.locator('h3')).to_be_hidden()
    beside.locator('[role=slider]').first.press('ArrowRight')
    expect(beside.locator('ins').last).to_have_text('+   max_length: 2048')
    beside.locator('select').filter(has=lab.page.locator('option[value="false"]')).first.select_option('false') # Checkpointing
    expect(answer).to_contain_text('✗ Too big')
    legible(lab)
    beside.locator('button', has_text='Apply suggestion').click()
    expect(answer).to_contain_text('✓ Fits')
    beside.locator('button', has_text='Undo all').click()
    expect(beside.locator('ins')).to_have_count(0)
    beside.locator('[role=slider]').first.press('ArrowRight')
    beside.locator('button', has_text='Copy as config').click()
    expect(beside.locator('pre').last).to_contain_text('max_length: 2048')
    with lab.narrow(): assert not wide(lab, 2)
    beside.locator('button', has_text='Close').click()
    expect(lab.output(2).locator('[role=slider]')).to_have_count(0)
    expect(lab.output(2).locator('summary').first).to_be_visible()
    lab.save()
    lab.shutdown()
    lab.open('explorer.ipynb')
    said = lab.page.locator('.jp-Notebook').inner_text()
    assert 'Llama-2-7B with QLoRA trains on a T4' in said and 'Error displaying widget' not in said and 'model not found' not in said
