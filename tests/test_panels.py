"Widgets as the outputs of a notebook get them, with ipywidgets 8 and with 7, which drops display ids"
from types import SimpleNamespace
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from qlora_nb import parse
from qlora_nb.training.run import Memory
from qlora_nb.ui.browser import Browser
from qlora_nb.methods.method import Method, Section
from qlora_nb.methods.register import METHODS, find_method, register, trainable
from qlora_nb.ui.controls import Controls
from qlora_nb.ui.explorer import Explorer, settings
from qlora_nb.ui.panels import WIDGET_VIEW, RunPanel, attach

class Rows:
    kept = (9, 8)
    def __len__(self): return 2
    def sample(self, n): return f'row {n+1}', [(False, 'Where do puffins nest? '), (True, 'In burrows.')]

def a_run(**kw):
    "What a panel reads of a run"
    run = dict(name='puffins', step=42, total=75, seconds=93., losses=[(1, 3.), (42, .3)], evals=[], scored=[], lr=1e-4, grad_norm=.5, tokens_per_second=800.,
        memory=Memory(), where='CPU', notes=[], samples=[], folder='runs/puffins', adapter=None, checkpoints=[], error=None,
        how_to_stop='■', next='', watchers=[], status='training', running=True)
    return SimpleNamespace(**run | kw)

@pytest.fixture(params=[7, 8])
def outputs(request, monkeypatch):
    "A shell with a front end, and a function that gives the outputs of its cell as a notebook would save them"
    if request.param==7:
        def shows_itself(self, **kw): display({'text/plain': repr(self), WIDGET_VIEW: {}}, raw=True)
        monkeypatch.setattr('ipywidgets.Widget._ipython_display_', shows_itself, raising=False)
    shell = InteractiveShell.instance()
    shell.kernel = None # there is one
    shell.display_pub = CapturingDisplayPublisher(shell=shell)
    def saved():
        cell = {}
        for n,message in enumerate(shell.display_pub.outputs): cell[message['transient'].get('display_id', n)] = message['data']
        return list(cell.values())
    yield saved
    InteractiveShell.clear_instance()

def readable(output): assert output['text/plain'] and 'VBox(' not in output['text/plain'] and 'children=' not in output['text/plain']

def test_a_report_takes_the_place_of_the_panel(outputs):
    panel,run = RunPanel(),a_run()
    panel(run)
    live, = outputs()
    assert WIDGET_VIEW in live
    readable(live)
    run.status,run.running = 'finished',False
    panel(run)
    report, = outputs()
    assert WIDGET_VIEW not in report and '<svg' in report['text/html'] and report['text/plain'].startswith('puffins: finished')

def test_a_second_panel_becomes_a_report_too(outputs):
    run = a_run()
    attach(run)
    run.status,run.running = 'finished',False
    for panel in run.watchers: panel(run)
    report, = outputs()
    assert WIDGET_VIEW not in report and 'puffins' in report['text/html']

def test_a_new_panel_takes_the_place_of_the_former(outputs):
    run = a_run()
    for _ in range(20): attach(run)
    *former,live = outputs()
    assert len(run.watchers)==1 and len(former)==19 and WIDGET_VIEW in live
    assert {output['text/plain'] for output in former}=={'puffins is shown in a newer panel.'} and not any(WIDGET_VIEW in output for output in former)
    run.status,run.running = 'finished',False
    for panel in run.watchers: panel(run)
    assert 'puffins: finished' in outputs()[-1]['text/plain'] and outputs()[0]==former[0]

def test_a_panel_sends_the_style_once_and_a_bounded_number_of_bytes(outputs, monkeypatch):
    clock,sent = [100.],[]
    monkeypatch.setattr('qlora_nb.ui.panels.time', SimpleNamespace(monotonic=lambda: clock[0], time=lambda: clock[0]))
    panel,run = RunPanel(),a_run(losses=[(i, 3-i/1000) for i in range(1000)])
    panel.html.observe(lambda change: sent.append(change['new']), 'value')
    for n in range(1000): # 50 steps a second for 20 seconds, with a validation at each
        run.seconds,run.status = run.seconds+.02,('training', 'evaluating')[n%2]
        panel(run)
        clock[0] += .02
    assert len(sent)>10 and sum(map(len, sent))<260_000 and not any('<style' in html for html in sent)

def test_a_new_state_is_shown_at_once(outputs):
    panel,run = RunPanel(),a_run()
    panel(run)
    run.status = 'saving'
    panel(run)
    assert 'saving' in panel.html.value

def test_the_row_stays_where_the_browser_was(outputs):
    browser = Browser(Rows())
    display(browser)
    live, = outputs()
    assert WIDGET_VIEW in live and '⟦In burrows.⟧' in live['text/plain']
    browser.forward()
    browser.done()
    row, = outputs()
    assert WIDGET_VIEW not in row and 'row 2' in row['text/html'] and 'row 2' in row['text/plain']

def test_the_plan_stays_where_the_explorer_was(outputs):
    widgets = Controls(Explorer(parse('model: Llama-2-7B\ndata: {train: demo}\nhardware: {gpu: T4}')))
    controls,plan = outputs()
    assert WIDGET_VIEW in controls and WIDGET_VIEW not in plan and 'Llama-2-7B' in plan['text/html']
    readable(controls)
    mark = widgets.explorer.mark # The page is hidden by a rule that comes with the widget, and by nothing else
    assert f'<div class="{mark}">' in plan['text/html'] and f'.{mark}{{display:none}}' not in plan['text/html']
    assert f'.{mark}{{display:none}}' in widgets.ui.children[0].value
    widgets.explorer.controls['training.max_length'].value = 2048
    assert outputs()[1]['text/plain'].startswith('✓ Fits. Llama-2-7B') and '+   max_length: 2048' in widgets.live.value and mark in outputs()[1]['text/html']
    widgets.close()
    controls,plan = outputs()
    assert controls=={'text/plain': ''} and plan['text/html']==widgets.explorer.plan._repr_html_() and mark not in plan['text/html']

def test_the_explorer_does_what_is_suggested_and_undoes_it(outputs):
    widgets = Controls(Explorer(parse('model: Llama-2-7B\ndata: {train: demo}\ntraining: {per_device_train_batch_size: 16, gradient_accumulation_steps: 1}\nhardware: {gpu: T4}')))
    explorer,before = widgets.explorer,widgets.explorer.config.flat
    assert explorer.plan.verdict=='tight' and not widgets.advised.disabled
    widgets.advised.click()
    training = explorer.config.training
    assert explorer.plan.verdict=='fits' and training.per_device_train_batch_size*training.gradient_accumulation_steps==16 and widgets.advised.disabled
    assert 'was 16' in explorer.controls['training.per_device_train_batch_size'].description and explorer.controls['training.per_device_train_batch_size'] in widgets.column.children
    explorer.undo()
    assert explorer.config.flat==before and 'was' not in explorer.controls['training.per_device_train_batch_size'].description

def test_a_refused_change_is_explained_and_changes_nothing(outputs):
    widgets = Controls(Explorer(parse('model: Llama-2-7B\ndata: {train: demo}\nhardware: {gpu: T4}')))
    widgets.explorer.change('model', 'Llama-2-7Bee')
    assert '<b>Not changed.</b>' in widgets.live.value and "Did you mean" in outputs()[1]['text/plain'] and widgets.explorer.config.model=='Llama-2-7B'

@pytest.fixture
def norms():
    "A method that the plan can price; nothing is trained here"
    def tensors(arch, section): return [(t.shape, t.count) for t in arch.tensors if t.group=='norms']
    def attach(base, section, task, **options): return base
    yield register(Method('norms', 'norm tuning', Section, (4, 8, 'none'), tensors, lambda name, parameter: 'norm' in name, attach))
    del METHODS['norms']

def test_a_method_is_picked_where_there_are_several(outputs, norms):
    "Its own controls take the place of the others, and what has lost its meaning leaves the config"
    widgets = Controls(Explorer(parse('model: Llama-2-7B\ndata: {train: demo}\nlora: {r: 64}\nhardware: {gpu: T4}')))
    explorer = widgets.explorer
    assert 'method' in explorer.controls and 'lora.r' in explorer.controls
    explorer.controls['method'].value = 'norms'
    assert explorer.config.method==explorer.plan.job.method.name=='norms' and 'lora' not in explorer.config.to_yaml()
    assert 'lora.r' not in explorer.controls and explorer.controls['method'] in widgets.column.children and 'was lora' in explorer.controls['method'].description

def test_a_picker_with_one_choice_is_none(): assert ('method' in settings(find_method('lora')))==(len(trainable())>1)
