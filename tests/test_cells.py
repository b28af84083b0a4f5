"What people write into a config cell, what a notebook's variables give it, and what a refused cell leaves"
import pytest, sys
from qlora_nb import parse, plan, resolve, resume, train
from qlora_nb.errors import QLoRAError
from qlora_nb.ui.cli import main

CELL = 'model: demo\ndata: {train: demo}\n'

def told(text, **kw):
    with pytest.raises(QLoRAError) as e: parse(text, **kw)
    assert not isinstance(e.value.__cause__, BaseException) and all(len(line)<300 for line in e.value.lines)
    return str(e.value)

@pytest.mark.parametrize('text,say', [
    ('model:demo\ndata: {train: demo}\n', 'line 1: a space is missing after the colon: write model: demo'),
    ('model: demo\ndata:\n  train:rows\n  prompt: q\n', 'line 3: a space is missing after the colon: write train: rows'),
    (CELL+'\n%qlora_train\n', 'line 4: %qlora_train is a notebook command: put it in a cell of its own'),
    (CELL+'%%qlora_config\n', 'line 3: %%qlora_config is a notebook command'),
    (CELL+'lora_r: 8\n'.replace('lora_r', 'lora_r_'), "unknown key 'lora_r_'"),
    (CELL+'lora:\n  r:16\n', 'line 4, lora.r: a space is missing after the colon: write r: 16'),
    (CELL+'lora: {r:16}\n', 'line 3, lora.r: a space is missing after the colon: write r: 16'),
    (CELL+'lora:\n  r：16\n', 'line 4, lora.r: ： is a fullwidth colon (U+FF1A): write r: 16'),
    (CELL+'lora:\n  r:\xa016\n', 'line 4, lora.r: a no-break space (U+00A0) stands where a plain space must follow the colon'),
    ('model: “demo”\ndata: {train: demo}\n', 'line 1, model: “ is a left double quotation mark (U+201C), which is no quote in YAML: write "demo"'),
    ('model: org/na\u200bme\ndata: {train: demo}\n', 'line 1, model: holds a zero width space (U+200B): write org/name'),
    (CELL+'“method”: lora\n', 'line 3, method: “ is a left double quotation mark'),
    (CELL+'!pip install x\n', 'line 3: !pip is a notebook command'),
    (CELL+'lora: {r: 16, r: 8}\n', 'line 3, lora.r: given twice, on line 3: keep one'),
    (CELL+'training: {per_device_train_batch_size: 0}\n', 'from 1 to 4096, got 0.')])
def test_the_cause_is_named(text, say): assert say in told(text)

def test_lora_r_is_lora_r(): assert "Did you mean 'lora.r'?" in told(CELL+'lora_r: 8\n')

@pytest.mark.parametrize('text', ['model: demo\t\ndata: {train: demo}\n', 'model: demo\xa0 # base\ndata: {train: demo}\n', '\ufeffmodel: demo\ndata: {train: demo}\n',
    'model: demo\u200b\ndata: {train: demo}\n', 'model\xa0: demo\ndata: {train: demo}\n'])
def test_what_cannot_be_seen_does_no_harm(text): assert parse(text).model=='demo'

@pytest.mark.parametrize('name', ['a b', 'a/b/c', 'https://huggingface.co/a/b', './nowhere', 'a--b'])
def test_a_model_that_is_no_hub_id_is_refused_before_any_download(name):
    with pytest.raises(QLoRAError, match='line 1, model: '): resolve(f'model: {name}\ndata: {{train: demo}}\n')

@pytest.mark.parametrize('call,say', [(lambda: parse(CELL, first_line='x'), "first_line: must be a number, got 'x' of type str"),
    (lambda: parse(CELL, namespace=[1]), 'namespace: must be a dict of variables, such as globals(), got [1] of type list'),
    (lambda: resolve(CELL, device='T4'), "device: must be a Device, as `qlora_nb.facts.machine.detect` gives it, got 'T4' of type str"),
    (lambda: train(CELL, name=3), 'name: must be a name for the folder of the run, got 3 of type int'),
    (lambda: train(CELL, on_change=3), 'on_change: must be a function that takes the run, got 3 of type int'),
    (lambda: resume(4), 'name: must be the name or the folder of a run, got 4 of type int')])
def test_an_argument_of_a_wrong_type_is_one_line(call, say):
    with pytest.raises(QLoRAError) as e: call()
    assert str(e.value)==say

def test_a_comment_that_cuts_a_prompt_is_named():
    c = parse('model: demo\ndata:\n  train: x.jsonl\n  prompt: Question # {q}\n  completion: a # the answer\n')
    assert c.data.prompt=='Question' and any("'# {q}' is a comment and no part of data.prompt" in n for n in c.notes)
    assert not parse('model: demo\ndata: {train: x.jsonl, prompt: "Question # {q}"}\ntraining: {seed: 1 # mine\n}\n').notes

def test_a_share_under_validation_is_a_share():
    c = parse('model: demo\ndata: {train: demo, validation: 0.1}\n')
    assert c.data.validation_size==.1 and c.data.validation is None and any('data.validation: 0.1 is a share' in n for n in c.notes)
    assert parse('model: demo\ndata: {train: demo, val: 20}\n').data.validation_size==20

def test_the_batch_size_of_training_is_meant():
    assert parse(CELL+'training: {per_device_batch_size: 8}\n').training.per_device_train_batch_size==8

def test_a_variable_gives_its_value():
    space = dict(rate=3e-4, names=['q_proj', 'v_proj'], where='runs/a', on=True, name='demo')
    c = parse('model: $name\ndata: {train: demo}\ntraining: {learning_rate: $rate, packing: $on}\nlora: {target_modules: $names}\noutput: {output_dir: $where}\n', namespace=space)
    assert (c.model, c.training.learning_rate, c.training.packing, c.lora.target_modules, c.output.output_dir)==('demo', 3e-4, True, ('q_proj', 'v_proj'), 'runs/a')
    assert c.sources['training.learning_rate']=='variable' and c.lines['training.learning_rate']==3 and parse(c.to_yaml())==c
    assert parse(CELL+'lora: {target_modules: [$first, v_proj]}\n', namespace=dict(first='q_proj')).lora.target_modules==('q_proj', 'v_proj')
    assert parse('model: demo\ndata: {train: demo, prompt: costs $name}\n', namespace=space).data.prompt=='costs $name'

@pytest.mark.parametrize('value,space,say', [('$rat', dict(rate=1), "there is no variable 'rat' in the notebook. Did you mean '$rate'?"), ('$rate', dict(rate={}), 'is a dict: a key takes a number'),
    ('$rate', dict(rate=-1), 'above 0 and at most 1, got -1'), ('$rate', None, 'pass `namespace`')])
def test_a_variable_that_cannot_be_is_one_line(value, space, say):
    assert say in told(CELL+f'training: {{learning_rate: {value}}}\n', namespace=space) and 'line 3, training.learning_rate' in told(CELL+f'training: {{learning_rate: {value}}}\n', namespace=space)

def test_quoted_it_is_text():
    c = parse('model: demo\ndata: {train: demo, prompt: "$name"}\n', namespace=dict(name='x'))
    assert c.data.prompt=='$name' and parse(c.to_yaml())==c
    c = parse(CELL+'lora: {target_modules: [$layers, o_proj]}\n', namespace=dict(layers=['q_proj', 'v_proj']))
    assert c.lora.target_modules==('q_proj', 'v_proj', 'o_proj')

def test_rows_are_named_without_the_sign():
    assert 'rows are named without the $: write frame' in told('model: demo\ndata: {train: $frame}\n', namespace=dict(frame=object()))

@pytest.mark.parametrize('what', [None, 3, b'model: demo'])
def test_what_is_no_text_is_no_config(what): assert 'a config is the text of a cell' in told(what)

def test_a_package_that_is_missing_is_one_line(ip, monkeypatch):
    ip.run_cell_magic('qlora_config', '', CELL)
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(QLoRAError, match='needs the package datasets, which is not installed here'): ip.run_line_magic('qlora_data', '')

def test_a_variable_inside_a_text_is_named():
    c = parse('model: demo\ndata: {train: demo, prompt: "$name {prompt}"}\n', namespace=dict(name='x'))
    assert c.data.prompt=='$name {prompt}' and any('$name inside a text is not replaced' in n for n in c.notes)

def test_a_plan_needs_no_rows(tmp_path, capsys):
    file = tmp_path/'config.yaml'
    file.write_text('model: demo\nlora: {r: 8}\n')
    assert main(['plan', str(file), '--gpu', 'T4'])==0 and 'T4' in capsys.readouterr().out
    assert plan('model: demo\nlora: {r: 8}\n', gpu='3090').device.name=='RTX 3090'

@pytest.mark.parametrize('content,say', [(b'', 'is empty'), (b'\xff\xfe\x00', 'is not UTF-8 text'), (b'model: dem\n\ndata:train\n', 'line')])
def test_a_file_that_is_no_config_is_one_line(tmp_path, capsys, content, say):
    file = tmp_path/'config.yaml'
    file.write_bytes(content)
    assert main(['plan', str(file)])==2
    out,err = capsys.readouterr()
    assert not out and say in err and err.count('\n')==1

def test_a_name_comes_before_the_list():
    with pytest.raises(QLoRAError, match="no GPU 'T5' in the catalogue; 55 are listed by .* Did you mean 'T4'"): plan('demo', gpu='T5')

def test_a_refused_cell_leaves_no_other_config_behind(ip):
    ip.run_cell_magic('qlora_config', '', CELL)
    assert ip.run_line_magic('qlora_config', '').model=='demo'
    with pytest.raises(QLoRAError): ip.run_cell_magic('qlora_config', '', CELL+'training: {max_steps: -5}\n')
    for magic in ('qlora_data', 'qlora_plan', 'qlora_config'):
        with pytest.raises(QLoRAError, match='last %%qlora_config cell had problems'): ip.run_line_magic(magic, '')
    ip.run_cell_magic('qlora_config', '', CELL)
    assert ip.run_line_magic('qlora_config', '').model=='demo'

def test_a_cell_takes_the_variables_of_its_notebook(ip):
    ip.user_ns['steps'] = 7
    ip.run_cell_magic('qlora_config', '-o c', CELL+'training: {max_steps: $steps}\n')
    assert ip.user_ns['c'].training.max_steps==7 and 'variable' in str(ip.user_ns['c'])

def test_a_cell_of_help_alone_is_help(ip, capsys):
    assert ip.run_cell('%%qlora_config -h\n').success and 'Check a config written in YAML' in capsys.readouterr().out

@pytest.mark.parametrize('magic,line', [('qlora_stop', '--help'), ('qlora_status', '-h'), ('qlora_config', '-h')])
def test_help_is_help(ip, capsys, magic, line):
    ip.run_line_magic(magic, line)
    assert '%' in capsys.readouterr().out

@pytest.mark.parametrize('line,say', [('-o class', 'cannot be a variable name'), ('-o my-run', 'cannot be a variable name'), ('--resume x --max-steps 5', 'for a new run')])
def test_what_is_wrong_with_a_run_is_said_before_it_begins(ip, tmp_path, monkeypatch, line, say):
    monkeypatch.chdir(tmp_path)
    ip.run_cell_magic('qlora_config', '', CELL)
    with pytest.raises(QLoRAError, match=say): ip.run_line_magic('qlora_train', line)
    assert not list(tmp_path.iterdir())
