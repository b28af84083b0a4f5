"A method of one's own is one value: config, plan, training, resuming, report and documentation know it, and no other file changes"
import inspect, pytest, tiny
from dataclasses import fields, replace
from pydantic import Field
from qlora_nb import parse, plan
from qlora_nb.config.words import docs_table
from qlora_nb.errors import QLoRAError
from qlora_nb.methods.method import Method, Section
from qlora_nb.config.schema import Settings
from qlora_nb.config.value import Config, _Page
from qlora_nb.methods.register import METHODS, OF_JOB, TAKEN, register
from qlora_nb.simulation.job import Job
from qlora_nb.store.folder import write_about
from qlora_nb.training.resume import SPLIT, compare
from qlora_nb.training.start import resume, train
from qlora_nb.ui.explorer import Explorer, settings as explorer_settings
from test_resume import final

class Norms(Section):
    "Weights of the normalisation layers"
    last: bool = Field(True, description='whether the norm before the output layer is trained too')

def tensors(arch, section): return [(t.shape, t.count) for t in arch.tensors if t.group=='norms']
def is_norm(name, parameter): return 'ln_tuning_layers' in name
def describe(section): return 'with the last norm' if section.last else 'without the last norm'

def attach(base, section, task, **options):
    from peft import LNTuningConfig, get_peft_model
    names = [n for n,_ in base.named_modules() if n.endswith('norm') and (section.last or '.layers.' in n)]
    return get_peft_model(base, LNTuningConfig(task_type=task.peft_type, target_modules=names), **options)

@pytest.fixture
def norms():
    yield register(Method('norms', 'norm tuning', Norms, (4, 8, 'none'), tensors, is_norm, attach, describe=describe, fixed=dict(last='other weights are trained')))
    del METHODS['norms']

ROWS = dict(rows=tiny.rows(12))
def cell(folder, out, more=''):
    return (f'model: {folder}\ndata: {{train: rows}}\nmethod: norms\nnorms: {{last: true}}\ntraining: {{per_device_train_batch_size: 2, '
        f'gradient_accumulation_steps: 1, max_length: 64, max_steps: 4, learning_rate: 0.01{more}}}\noutput: {{output_dir: {out}}}\n')

def test_config_and_documentation_know_it(norms):
    c = parse('model: demo\ndata: {train: demo}\nmethod: norms\nnorms: {last: false}\n')
    assert c.section==Norms(last=False) and 'norms.last' in str(docs_table()) and 'method: norms' in c.to_yaml()
    with pytest.raises(QLoRAError, match='norms.lst'): parse('model: demo\ndata: {train: demo}\nmethod: norms\nnorms: {lst: 1}\n')
    with pytest.raises(QLoRAError, match='belongs to method lora'): parse('model: demo\ndata: {train: demo}\nmethod: norms\nlora: {r: 8}\n')

def test_the_plan_prices_it(norms):
    p = plan('model: meta-llama/Llama-2-7b-hf\ndata: {train: demo}\nmethod: norms\nhardware: {gpu: T4}\n')
    trained = sum(t.size for t in p.architecture.tensors if t.group=='norms')
    assert p.budget.trainable==trained==65*4096 and p.budget.group('gradients')==4*trained and p.verdict=='fits'
    assert 'norm tuning on nf4 with double quantisation, with the last norm' in str(p) and [o.method.name for o in p.options]==['full', 'norms', 'norms']

def test_a_kernel_that_does_not_know_the_method_of_a_run_says_so(tmp_path):
    (tmp_path/'run').mkdir()
    write_about(tmp_path/'run', name='run', status='stopped')
    (tmp_path/'run/config.yaml').write_text('model: demo\ndata:\n  train: demo\nmethod: norms\nnorms:\n  last: false\n')
    with pytest.raises(QLoRAError) as e: resume('run', output_dir=tmp_path)
    assert str(e.value)=='method: run trains with method norms, which is not known in this kernel: run the notebook or import the module that registers it, then resume'

def test_the_explorer_has_the_controls_of_the_method(norms):
    for method,own in (('lora', ('lora.r', 'lora.target_modules')), ('full', ()), ('norms', ())):
        assert tuple(key for key in explorer_settings(METHODS[method]) if key.split('.')[0] in ('lora', 'full', 'norms'))==own
    config = parse('model: Llama-2-7B\ndata: {train: demo}\nmethod: norms\nhardware: {gpu: T4}\n')
    assert not [key for key in Explorer(config).controls if key.startswith('lora')]

def test_it_trains_and_resumes_to_the_same_bytes(norms, folder, tmp_path):
    whole = train(cell(folder, tmp_path/'whole'), ROWS, name='run')
    assert whole.status=='finished' and 'norm tuning' in str(whole)
    trained = [n for n,p in whole.model.named_parameters() if p.requires_grad]
    assert len(trained)==5 and all(is_norm(n, None) for n in trained)
    run = train(cell(folder, tmp_path/'cut'), ROWS, name='run', on_change=tiny.at_step(2, stop))
    assert run.status=='stopped' and 2<=run.step<4
    again = resume(str(run.folder), namespace=ROWS)
    assert again.status=='finished' and final(again)==final(whole)

def stop(run): run.stop('test')

def test_what_is_fixed_may_not_change(norms, folder, tmp_path):
    run = train(cell(folder, tmp_path), ROWS, name='run', on_change=tiny.at_step(1, stop))
    with pytest.raises(QLoRAError, match='norms.last was True and is False now .other weights are trained.'):
        resume(str(run.folder), parse(cell(folder, tmp_path).replace('last: true', 'last: false')), ROWS)

@pytest.mark.parametrize('was,now,rule', [('pissa', True, 'refused'), (True, 'pissa', 'refused'), ('olora', 'pissa', 'refused'), ('gaussian', 'olora', 'refused'), (True, 'gaussian', 'no effect')])
def test_a_start_that_changes_the_base_may_not_change(was, now, rule):
    def of(initial): return dict(resolved={'method': 'lora', 'lora.init_lora_weights': initial, **dict.fromkeys(SPLIT, 1)}, data={}, total=4)
    changed, = compare(of(was), of(now), 2).items
    assert (changed.what, changed.rule)==('lora.init_lora_weights', rule) and ('base weights' in changed.why)==(rule=='refused')

class Listed(Section):
    names: list = []

class Needed(Section):
    rank: int = Field(description='no default')

class Sized(Section):
    batch: int = 1

@pytest.mark.parametrize('changes,say', [(dict(name='data'), "'data' cannot be"), (dict(name='a b'), "'a b' cannot be"), (dict(name=''), "'' cannot be"),
    (dict(name='with_'), 'cannot be'), (dict(bases=()), 'bases must be'), (dict(bases=(2,)), 'bases must be'), (dict(adapters=False), 'without adapters'),
    (dict(grows='rank'), "no setting: 'rank'"), (dict(section=Needed), "'rank' needs a default"), (dict(section=Listed), 'a tuple, not a list'),
    (dict(section=Sized), 'property of a job'), (dict(name='lora'), 'already')])
def test_what_would_break_a_cell_is_refused_at_the_door(norms, changes, say):
    with pytest.raises(QLoRAError, match=say): register(replace(norms, **changes))
    assert parse('model: demo\ndata: {train: demo}\n').method=='lora'

def test_names_that_a_method_may_not_have_are_those_of_config_and_job():
    public = {n for n in {*vars(Config), *vars(_Page), *Settings.model_fields, *vars(Settings)} if not n.startswith(('_', 'model_'))}
    changed = {n for n in inspect.signature(Job.changed).parameters if n not in ('self', 'values')}
    assert public<=set(TAKEN) and {f.name for f in fields(Job)}|changed==set(OF_JOB)

def test_a_cell_that_registers_may_be_run_again(norms):
    again = register(replace(norms, label='norm tuning, edited'))
    assert METHODS['norms'] is again

def test_the_plan_offers_only_bases_that_the_method_takes(norms):
    register(replace(norms, bases=('none',)))
    p = plan('model: meta-llama/Llama-2-7b-hf\ndata: {train: demo}\nmethod: norms\ntraining: {per_device_train_batch_size: 4, max_length: 4096}\nhardware: {gpu: T4}\n')
    assert not any('base' in k.name for k in p.setting_changes) and [o.name for o in p.options]==['full fine-tuning on float32', 'norm tuning on float16, with the last norm']
    assert not p.suggestion or 'quantization.bits' not in p.suggestion.changes

def test_rules_belong_to_the_method_and_not_to_its_name():
    own = register(replace(METHODS['lora'], name='own'))
    try:
        with pytest.raises(QLoRAError, match='pissa needs a base that is not quantised'):
            parse('model: demo\ndata: {train: demo}\nmethod: own\nown: {init_lora_weights: pissa}\n')
        assert 'DoRA makes each step slower' in str(parse('model: demo\ndata: {train: demo}\nmethod: own\nown: {use_dora: true}\n').notes)
    finally: del METHODS['own']

def test_afterwards_nobody_knows_it():
    with pytest.raises(QLoRAError, match='lora'): parse('model: demo\ndata: {train: demo}\nmethod: norms\n')
