"The magics in a real IPython shell, without a front end"
import sys
import pytest, tiny
from IPython.core.interactiveshell import InteractiveShell
from qlora_nb import compare
from qlora_nb.errors import QLoRAError
from qlora_nb.methods.full import FULL

def run(ip, code):
    "Run a cell; raise what it raised, return its value"
    r = ip.run_cell(code)
    r.raise_error()
    return r.result

def cell(folder, out, **training):
    t = dict(per_device_train_batch_size=2, gradient_accumulation_steps=1, max_length=64, max_steps=2)|training
    return f'%%qlora_config\nmodel: {folder}\ndata: {{train: rows, validation: rows}}\ntraining: {t}\noutput: {{output_dir: {out}}}'.replace("'", '')

def refused(ip, code):
    with pytest.raises(QLoRAError) as e: run(ip, code)
    return str(e.value)

def test_the_whole_way(ip, folder, tmp_path, capsys, monkeypatch):
    ip.user_ns['rows'] = tiny.rows()
    cfg = run(ip, cell(folder, tmp_path))
    assert cfg.training.max_steps==2 and cfg.sources['training.max_steps']=='cell'
    assert run(ip, '%qlora_data').train.rows==16
    r = run(ip, '%qlora_train -o first')
    assert ip.user_ns['first'] is r and r.status=='finished' and r.folder.name=='first'
    assert run(ip, '%qlora_status') is r
    run(ip, '%qlora_compare --rows 3 --max-new-tokens 4 -o c')
    before,after = ip.user_ns['c'].before,ip.user_ns['c'].after
    assert len(after)==3
    monkeypatch.setattr('qlora_nb.results.evaluate.find_method', lambda name: FULL) # without an adapter to switch off
    assert compare(r, 3, max_new_tokens=4).before==before
    run(ip, '%qlora_generate --max-new-tokens 3 who is on the mat')
    run(ip, '%qlora_stop')
    assert 'first is not running: finished' in capsys.readouterr().out

def test_the_plan_comes_before_any_training(ip): assert len(run(ip, '%qlora_plan meta-llama/Llama-2-7b-hf').options)==3

def test_the_plan_for_other_cards_and_readers(ip, capsys):
    import json
    assert run(ip, '%qlora_plan meta-llama/Llama-2-7b-hf --gpu T4 --json -o p') is None
    told = json.loads(capsys.readouterr().out)
    assert told['gpu']=='T4' and told['tensors_bytes']==ip.user_ns['p'].tensors_bytes and told['verdict']=='fits'
    assert refused(ip, '%qlora_plan demo --gpu T5').endswith("Did you mean 'T4'?")
    assert 'leave out --trace, --json and --markdown' in refused(ip, '%qlora_plan demo --explore --json')
    assert refused(ip, '%qlora_plan demo --explore').startswith('%qlora_plan: --explore needs a notebook')

@pytest.mark.parametrize('magic', ['qlora_train', 'qlora_plan', 'qlora_data'])
def test_without_a_config(ip, magic): assert refused(ip, f'%{magic}').startswith('no config yet: run a cell that begins with %%qlora_config')

@pytest.mark.parametrize('magic', ['qlora_status', 'qlora_stop', 'qlora_compare', 'qlora_generate hello'])
def test_without_a_run(ip, magic, monkeypatch):
    if 'qlora_nb.training.start' in sys.modules: monkeypatch.setattr(sys.modules['qlora_nb.training.start'], '_current', [])
    assert refused(ip, f'%{magic}')=='nothing has been trained in this notebook yet: run %qlora_train first'

def test_a_config_without_data_plans_only(ip, tmp_path):
    cfg = run(ip, f'%%qlora_config\nmodel: meta-llama/Llama-2-7b-hf\nhardware: {{gpu: T4}}\noutput: {{output_dir: {tmp_path}}}')
    assert 'so this config only plans' in str(cfg) and 'so this config only plans' in cfg._repr_html_()
    assert run(ip, '%qlora_plan').tensors_bytes==run(ip, '%qlora_plan meta-llama/Llama-2-7b-hf --gpu T4').tensors_bytes
    for magic in ('%qlora_data', '%qlora_train'):
        said = refused(ip, magic)
        assert said.startswith('data.train: no training data is named') and 'add `data: {train: …}`' in said and '\n' not in said
    assert not list(tmp_path.iterdir())
    assert run(ip, '%%qlora_config\nmodel: demo\ndata: {train: demo}').notes==[]

def test_errors_name_the_line_of_the_cell(ip):
    with pytest.raises(QLoRAError) as e: run(ip, '%%qlora_config -o cfg\nmodel: demo\ndata:\n  train: demo\nlora: {rank: x}\ntrainig: {}\n')
    assert [(p.line, p.suggestion) for p in e.value.errors if p.line==6]==[(6, 'training')] and any(p.line==5 for p in e.value.errors)
    assert 'cfg' not in ip.user_ns

def test_an_option_that_does_not_exist(ip): assert "Did you mean '--background'?" in refused(ip, '%qlora_train --backgroud')
def test_a_name_that_cannot_be_one(ip): assert 'cannot be a variable name' in refused(ip, '%%qlora_config -o 1x\nmodel: demo\ndata: {train: demo}')
def test_quotes_that_do_not_close(ip): assert 'No closing quotation' in refused(ip, '%qlora_generate "hello')

def test_help(ip, capsys):
    assert run(ip, '%qlora_train -h') is None
    said = capsys.readouterr().out
    assert '--background' in said and 'Return at once' in said

def test_settings_are_defaults(ip, tmp_path):
    run(ip, f'%config QLoRA.output_dir = {str(tmp_path)!r}')
    cfg = run(ip, '%%qlora_config\nmodel: demo\ndata: {train: demo}')
    assert cfg.output.output_dir==str(tmp_path) and cfg.sources['output.output_dir']=='%config'

def left(ip):
    magics = [n for k in ip.magics_manager.magics.values() for n in k if n.startswith('qlora_')]
    return magics, [c for c in ip.configurables if type(c).__name__=='QLoRA'], len(ip.Completer.custom_matchers), 'QLoRA' in ip.magics_manager.registry

def test_loading_twice_reloading_and_unloading_leave_nothing():
    ip = InteractiveShell()
    clean = left(ip)
    for magic in ('load_ext', 'load_ext', 'reload_ext'): ip.run_line_magic(magic, 'qlora_nb')
    magics,configurables,matchers,known = left(ip)
    assert len(configurables)==1 and matchers==clean[2]+1 and known and len(magics)==len(set(magics))+1 # %qlora_config is a line magic too
    ip.run_line_magic('unload_ext', 'qlora_nb')
    assert left(ip)==clean

def complete(ip, code):
    "What a front end asks: the whole cell and a cursor at its end"
    with_provisional = __import__('IPython.core.completer', fromlist=['provisionalcompleter']).provisionalcompleter
    with with_provisional(): return [c.text for c in ip.Completer.completions(code, len(code))]

def test_completion_inside_the_cell(ip):
    assert 'learning_rate' in ' '.join(complete(ip, '%%qlora_config\nmodel: demo\ntraining:\n  learn'))
    assert 'nf4' in ' '.join(complete(ip, '%%qlora_config\nquantization:\n  bnb_4bit_quant_type: n'))
    assert any('--background' in o for o in complete(ip, '%qlora_train --back'))
    assert not any('learning_rate' in o for o in complete(ip, 'x = 1\nlearn'))
