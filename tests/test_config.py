"The schema of the cell: what is read, what is refused and in which words, what a machine changes"
import json, random, re, subprocess, sys
from dataclasses import replace
from functools import cache
from typing import Literal
import pytest, yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from qlora_nb.config.cell import parse
from qlora_nb.config.complete import complete
from qlora_nb.config.renamed import FORMER, FORMER_VALUES, GONE
from qlora_nb.config.resolve import resolve
from qlora_nb.config.schema import SCHEDULES, fields, sections
from qlora_nb.config.value import Config, _Quoting
from qlora_nb.config.words import allowed, choices, docs_table
from qlora_nb.tokens.templates import CHAT_TEMPLATES, TEMPLATES
from qlora_nb.data.names import NO_DATA
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.hardware import Device
from qlora_nb.facts.models import find
from qlora_nb.facts.optimizers import OPTIMIZERS
from qlora_nb.methods.method import Method, Section
from qlora_nb.tasks.register import TASKS
from qlora_nb.methods.register import METHODS, register
from pydantic import Field

BASE = 'model: demo\ndata: {train: demo}\n'
HOUSE = '''%%qlora_config
model: meta-llama/Llama-2-7b-hf
data:
  train: tickets.jsonl
lora: {r: 16, lora_alpha: 32}
training: {per_device_train_batch_size: 1, gradient_accumulation_steps: 16, max_length: 1024}'''

def refused(text, **kw): # the problems of a cell
    with pytest.raises(QLoRAError) as e: parse(text, **kw)
    return e.value.errors

def told(text, **kw): return [(p.line, p.key, p.suggestion) for p in refused(text, **kw)]
def keys(section): return [k.rpartition('.')[2] for k in fields() if k.rpartition('.')[0]==section]+([] if section else list(sections()))

# ---- what is read

def test_the_cell_of_the_house():
    c = parse(HOUSE)
    assert (c.model, c.data.train, c.lora.r, c.training.max_length)==('meta-llama/Llama-2-7b-hf', 'tickets.jsonl', 16, 1024)
    assert c.lines=={'model': 2, 'data.train': 4, 'lora.r': 5, 'lora.lora_alpha': 5, 'training.per_device_train_batch_size': 6,
        'training.gradient_accumulation_steps': 6, 'training.max_length': 6}
    assert c.notes==[] and c.sources['lora.r']=='cell' and c.sources['lora.lora_dropout']=='default' and c.sources['training.eval_strategy']=='derived'
    own = [key for key in fields() if not key.startswith('classification.')]
    assert isinstance(c, Config) and list(c.flat)==own==list(c.sources)

def test_defaults():
    c = parse(BASE)
    assert (c.quantization.bits, c.quantization.bnb_4bit_quant_type, c.quantization.bnb_4bit_use_double_quant)==(4, 'nf4', True)
    assert (c.lora.r, c.lora.lora_alpha, c.lora.lora_dropout, c.lora.target_modules, c.lora.init_lora_weights)==(16, 32, 0.05, 'all-linear', True)
    t = c.training
    assert (t.learning_rate, t.optim, t.warmup_steps, t.max_steps, t.num_train_epochs, t.save_minutes)==(2e-4, 'paged_adamw_32bit', 0.03, None, 3.0, 2.0)
    assert (t.packing, t.gradient_checkpointing, t.eval_strategy, t.completion_only_loss)==('auto', 'auto', 'no', True)
    assert (c.trust_remote_code, c.output.output_dir, c.tracking.report_to, c.hardware.gpu)==(False, 'runs', 'none', 'auto')

@pytest.mark.parametrize('line, key, value', [
    ('training: {max_length: 010}', 'training.max_length', 10), ('training: {max_length: 1_024}', 'training.max_length', 1024),
    ('training: {learning_rate: 1e-4}', 'training.learning_rate', 1e-4), ('training: {learning_rate: 1E-4}', 'training.learning_rate', 1e-4),
    ('training: {learning_rate: 2e-5}', 'training.learning_rate', 2e-5), ('training: {max_length: 2_048}', 'training.max_length', 2048),
    ('lora: {r: "8"}', 'lora.r', 8), ('training: {warmup_steps: 10}', 'training.warmup_steps', 10), ('training: {warmup_steps: 0.1}', 'training.warmup_steps', 0.1),
    ('training: {packing: on}', 'training.packing', True), ('training: {packing: No}', 'training.packing', False), ('training: {packing: AUTO}', 'training.packing', 'auto'),
    ('trust_remote_code: off', 'trust_remote_code', False), ('quantization: {bits: 8}', 'quantization.bits', 8), ('quantization: {bits: none}', 'quantization.bits', 'none'),
    ('quantization: {bnb_4bit_quant_type: FP4}', 'quantization.bnb_4bit_quant_type', 'fp4'), ('training: {eval_strategy: no}', 'training.eval_strategy', 'no'),
    ('lora: {target_modules: [q_proj, v_proj]}', 'lora.target_modules', ('q_proj', 'v_proj')), ('lora: {init_lora_weights: gaussian}', 'lora.init_lora_weights', 'gaussian'),
    ('lora.r: 8', 'lora.r', 8), ('lora.rank: 8', 'lora.r', 8), ('lora:\n  target_modules:\n  - q_proj', 'lora.target_modules', ('q_proj',)), ('lora: {init_lora_weights: yes}', 'lora.init_lora_weights', True),
    ('revision: 12e4567', 'revision', '12e4567'), ('revision: 2024-01-01', 'revision', '2024-01-01'), ('revision: null', 'revision', None),
    ('revision: "null"', 'revision', 'null'), ('tracking: {report_to: [wandb, mlflow]}', 'tracking.report_to', ('wandb', 'mlflow')),
    ('output: {output_dir: "~/läufe 1"}', 'output.output_dir', '~/läufe 1')])
def test_values(line, key, value):
    got = parse(BASE+line).flat[key]
    assert got==value and type(got) is type(value)

def test_texts_keep_their_form():
    c = parse('model: demo\ndata:\n  train: demo\n  prompt: "{question}\\n"\n  system: |\n    You are kind.\n    Always.\n  completion: "{a}: {b}"')
    assert (c.data.prompt, c.data.system, c.data.completion)==('{question}\n', 'You are kind.\nAlways.\n', '{a}: {b}')

def test_lines_are_counted_as_the_person_sees_them():
    assert told('%%qlora_config -o c\nmodel: demo\n\n# word\ndata: {train: demo}\nlora: {rr: 1}')==[(6, 'lora.rr', 'r')]
    assert told('model: demo\r\ndata: {train: demo}\r\nlora: {rr: 1}', first_line=2)==[(4, 'lora.rr', 'r')]
    assert told(BASE.replace('demo}', '"a\u2028b"}')+'lora: {rr: 1}')==[(3, 'lora.rr', 'r')]

# ---- what is refused

@pytest.mark.parametrize('text, line, key, suggestion', [
    (BASE+'quantizaton: {bits: 4}', 3, 'quantizaton', 'quantization'), (BASE+'learning_rate: 1e-4', 3, 'learning_rate', 'training.learning_rate'),
    (BASE+'r: 8', 3, 'r', 'lora.r'), (BASE+'lora: {lora_alhpa: 8}', 3, 'lora.lora_alhpa', 'lora_alpha'), (BASE+'lora: {learning_rate: 8}', 3, 'lora.learning_rate', 'training.learning_rate'),
    (BASE+'training: {report_to: wandb}', 3, 'training.report_to', 'tracking.report_to'), (BASE+'training: {model: x}', 3, 'training.model', 'model'),
    (BASE+'lr: 1', 3, 'lr', 'training.learning_rate'), (BASE+'lora: {lr: 1}', 3, 'lora.lr', 'training.learning_rate'), (BASE+'learnin_rate: 1', 3, 'learnin_rate', 'training.learning_rate'), (BASE+'training: {optimzer: x}', 3, 'training.optimzer', 'optim'),
    (BASE+'packing: true', 3, 'packing', 'training.packing'), (BASE+'training: {gradient_checkpoint: true}', 3, 'training.gradient_checkpoint', 'gradient_checkpointing'),
    (BASE+'lora: {max_grad_nrm: 1}', 3, 'lora.max_grad_nrm', 'training.max_grad_norm'), (BASE+'quantization: {quant: nf4}', 3, 'quantization.quant', 'bnb_4bit_quant_type'),
    (BASE+'foo: 1', 3, 'foo', None), (BASE+'lora.rr: 8', 3, 'lora.rr', 'r'), (BASE+'a.b: 8', 3, 'a.b', None), (BASE+'lora: {lora.r: 8}', 3, 'lora.lora.r', 'lora')])
def test_unknown_keys(text, line, key, suggestion): assert told(text)==[(line, key, suggestion)]

def test_a_missing_key_is_told_once():
    assert [p.key for p in refused('lora: {r: 8}')]==['model']
    assert told('modle: demo\ndata: {train: demo}')==[(1, 'modle', 'model')]
    assert told('model: demo\ndata: {trian: demo}')==[(2, 'data.trian', 'train')]
    assert [p.key for p in refused('model: demo\ndata: tickets.jsonl')]==['data']

def test_a_config_without_data_plans_and_says_so():
    c,said = parse('model: demo'),f'data.train: {NO_DATA}'
    assert c.data.train is None and c.notes==[said] and c==parse('model: demo\ndata: {train: null}') and c.to_yaml()=='model: demo\n'
    assert said in str(c) and 'only plans' in c._repr_html_() and resolve(c).notes==[said] and resolve(c).kinds=={}
    assert parse('model: demo\ntraining: {eval_strategy: steps, load_best_model_at_end: true}').notes==[said]
    full = c.with_(**{'data.train': 'demo'})
    assert full==parse(BASE) and full.notes==[] and full.with_(**{'data.train': None})==c and 'train' in complete('data: {', '')

def test_a_half_filled_data_section_is_refused_once():
    alone = 'data.train: is required beside the other keys of data: name the training data, or leave the whole section out to plan only'
    for rest in ('{validation: demo}', '{train: null, split: test}', '{max_lost: 1, header: none}'):
        with pytest.raises(QLoRAError) as e: parse(f'model: demo\ndata: {rest}')
        assert str(e.value)==alone
    assert told('model: demo\ndata: {trian: demo, validation: demo}')==[(2, 'data.trian', 'train')]
    assert [p.key for p in refused('model: demo\ndata: {train: [], validation: demo}')]==['data.train']
    with pytest.raises(QLoRAError, match='is required beside'): parse(BASE.replace('demo}', 'demo, validation_size: 5}')).with_(**{'data.train': None})

@pytest.mark.parametrize('line, message', [
    ('training: {learning_rate: abc}', "line 3, training.learning_rate: must be a number above 0 and at most 1, got 'abc'."),
    ('training: {learning_rate: -1}', "line 3, training.learning_rate: must be a number above 0 and at most 1, got -1."),
    ('training: {learning_rate: 0}', "line 3, training.learning_rate: must be a number above 0 and at most 1, got 0."),
    ('training: {learning_rate: .nan}', "line 3, training.learning_rate: must be a number above 0 and at most 1, got '.nan'."),
    ('training: {learning_rate: nan}', "line 3, training.learning_rate: must be a number above 0 and at most 1, got 'nan'."),
    ('training: {weight_decay: inf}', "line 3, training.weight_decay: must be a number from 0 to 1, got 'inf'."),
    ('lora: {r: 8.5}', "line 3, lora.r: must be an integer from 1 to 4096, got 8.5."),
    ('lora: {r: true}', "line 3, lora.r: must be an integer from 1 to 4096, got 'true'."),
    ('lora: {r: [8]}', 'line 3, lora.r: must be an integer from 1 to 4096, got [8].'),
    ('lora: {r: {a: b}}', 'line 3, lora.r: must be an integer from 1 to 4096, got a mapping: a text that begins with { needs quotes'),
    ('lora:\n  r:', 'line 4, lora.r: must be an integer from 1 to 4096, got nothing.'),
    ('lora: {r: null}', 'line 3, lora.r: must be an integer from 1 to 4096, got nothing.'),
    ('lora: {lora_dropout: 1}', "line 3, lora.lora_dropout: must be a number of at least 0 and below 1, got 1."),
    ('lora: {target_modules: q_proj}', "line 3, lora.target_modules: must be all-linear, attention-only or a list of names, got 'q_proj'."),
    ('lora: {target_modules: all_linear}', "line 3, lora.target_modules: must be all-linear, attention-only or a list of names, got 'all_linear'. Did you mean 'all-linear'?"),
    ('lora: {target_modules: [[q]]}', 'line 3, lora.target_modules: must be all-linear, attention-only or a list of names, got a list of lists or mappings'),
    ('lora: {init_lora_weights: eva}', 'line 3, lora.init_lora_weights: must be true, false, gaussian, olora, pissa or orthogonal: eva needs a pass over the data that is not made here'),
    ('quantization: {bits: 5}', "line 3, quantization.bits: must be 4, 8 or none, got 5."),
    ('quantization: {bnb_4bit_quant_type: nf5}', "line 3, quantization.bnb_4bit_quant_type: must be nf4 or fp4, got 'nf5'. Did you mean 'nf4'?"),
    ('training: {warmup_steps: 1.5}', "line 3, training.warmup_steps: must be a share below 1 or a number of steps, got 1.5."),
    ('training: {warmup_steps: null}', 'line 3, training.warmup_steps: must be a share below 1 or a number of steps, got nothing.'),
    ('training: {packing: maybe}', "line 3, training.packing: must be true, false or auto, got 'maybe'."),
    ('training: {seed: 4294967296}', "line 3, training.seed: must be an integer from 0 to 4,294,967,295, got 4294967296."),
    ('tracking: {report_to: [wandb, wandv]}', 'line 3, tracking.report_to: must be none, tensorboard, wandb, mlflow, trackio or a list of names, got [wandb, wandv].'),
    ('lora:', 'line 3, lora: this section is empty: indent its keys below it, or delete the line'),
    ('lora: 16', 'line 3, lora: a section holds keys: write lora: {r: …}, or one indented key per line without a dash'),
    ('lora:\n- r: 16', 'line 3, lora: a section holds keys: write lora: {r: …}, or one indented key per line without a dash'),
    ('lora: {lora: {r: 1}}', 'line 3, lora.lora: lora is a section of its own: write it at the left margin'),
    ('model: demo', 'line 3, model: given twice, on lines 1 and 3: keep one'),
    ('lora: {r: 8}\nlora: {r: 16}', 'line 4, lora: given twice, on lines 3 and 4: keep one'),
    ('lora:\n  r: 8\n  r: 16', 'line 5, lora.r: given twice, on lines 4 and 5: keep one'),
    ('lora:\n  r: 8\n  rank: 16', 'line 5, lora.rank: given twice, on lines 4 and 5: keep r'),
    ('? [a]\n: b', 'line 3: a key is a word, not a list or mapping')])
def test_messages(line, message): assert [str(p) for p in refused(BASE+line)]==[message]

@pytest.mark.parametrize('text, line, words', [
    ('', 1, 'the cell is empty'), ('%%qlora_config', 1, 'the cell is empty'), ('# only a word', 1, 'the cell is empty'), ('demo', 1, 'expected keys'), ('- a\n- b', 1, 'expected keys'),
    ('model: demo\ndata:\n\ttrain: x', 3, 'use spaces'), (BASE+'---\nmodel: x', 3, '--- begins a second one'), (BASE+'revision: &a x\nlora: *a', 3, 'anchors and aliases'),
    (BASE+'revision: !!python/object/apply:os.system [ls]', 3, 'tags'), ('model: '+'['*3000, 1, 'nested too deeply'), ('{'*3000, 1, 'nested too deeply'),
    (BASE+'revision: @main', 3, 'needs quotes'), ('model: demo\ndata:\n  train: demo\n  prompt: {a} and {b}', 4, 'needs quotes'), ('model: demo\ndata: {train: demo, prompt: {a} b}', 2, 'needs quotes'),
    ('model: demo\ndata:\n  train: demo\n  system: You are: kind', 4, 'quote a text'), (BASE+'lora: {r: 8', 3, 'is open'), (BASE+"revision: 'x", 3, 'quote is open'),
    ('model: "a\\dc"', 1, 'single quotes'), ('model: "\\UFFFFFFFF"', 1, 'out of range'), ('model: a\x00b', 1, 'invisible'), (BASE+' lora: {r: 8}', 3, 'indented'),
    (BASE+'lora:\n  r: 8\n lora_alpha: 8', 5, 'indented'), ('#'+'x'*70_000, 1, 'characters')])
def test_what_is_no_yaml_here(text, line, words):
    problem, = refused(text)
    assert problem.line==line and words in str(problem)

def test_all_problems_at_once_in_the_order_of_lines():
    assert told('data: {train: demo, validaton: x}\nlora: {r: 0, alpa: 3}\ntraining: {optim: adamw_touch}\nbits: 4')==[(1, 'data.validaton', 'validation'), (2, 'lora.alpa', 'lora_alpha'),
        (2, 'lora.r', None), (3, 'training.optim', 'adamw_torch'), (4, 'bits', 'quantization.bits'), (None, 'model', None)]

# ---- names of yesterday

@pytest.mark.parametrize('line, key, value', [
    ('lora: {alpha: 8}', 'lora.lora_alpha', 8), ('lora: {rank: 8, dropout: 0.1}', 'lora.lora_dropout', 0.1), ('training: {lr: 1e-3}', 'training.learning_rate', 1e-3),
    ('training: {optimizer: adamw_torch}', 'training.optim', 'adamw_torch'), ('training: {batch_size: 2}', 'training.per_device_train_batch_size', 2),
    ('training: {warmup_ratio: 0.1}', 'training.warmup_steps', 0.1), ('training: {max_seq_length: 512}', 'training.max_length', 512), ('training: {epochs: 1}', 'training.num_train_epochs', 1.0),
    ('training: {grad_accum: 4}', 'training.gradient_accumulation_steps', 4), ('training: {evaluation_strategy: no}', 'training.eval_strategy', 'no'),
    ('quantization: {load_in_4bit: true}', 'quantization.bits', 4), ('quantization: {load_in_8bit: true}', 'quantization.bits', 8), ('quantization: {load_in_4bit: false}', 'quantization.bits', 'none'),
    ('quantization: {double_quant: false}', 'quantization.bnb_4bit_use_double_quant', False), ('quantization: {quant_type: fp4}', 'quantization.bnb_4bit_quant_type', 'fp4'),
    ('quantization: {compute_dtype: bf16}', 'quantization.bnb_4bit_compute_dtype', 'bfloat16')])
def test_former_names_are_carried_over_with_a_note(line, key, value):
    c = parse(BASE+line)
    assert c.flat[key]==value and any(key in n and n.startswith('line 3: ') and ' is now ' in n for n in c.notes)

def test_the_method_of_other_tools():
    for line in ('peft_type: LORA', 'method: qlora', 'finetuning_type: lora'): assert parse(BASE+line).method=='lora' and len(parse(BASE+line).notes)==1

def test_notes_name_both_names():
    assert parse(BASE+'training: {lr: 1e-3}').notes==['line 3: training.lr is now called training.learning_rate']
    assert parse(BASE+'quantization: {bnb_4bit_compute_dtype: torch.bfloat16}').notes==['line 3: quantization.bnb_4bit_compute_dtype: torch.bfloat16 is now written bfloat16']

@pytest.mark.parametrize('line, words', [
    ('training: {logging_dir: x}', 'output.output_dir'), ('training: {overwrite_output_dir: true}', 'folder of its own'), ('training: {no_cuda: true}', 'the machine decides'),
    ('tokenizer: x', 'comes with the model'), ('training: {dataset_text_field: text}', 'data.prompt'), ('training: {group_by_length: true}', 'training.train_sampling_strategy'),
    ('training: {bf16: true}', 'bnb_4bit_compute_dtype'), ('training: {warmup_ratio: 5}', "got 'a ratio of 5'")])
def test_what_is_gone_says_what_replaced_it(line, words):
    problem, = refused(BASE+line)
    assert words in str(problem) and problem.line==3

def test_the_tables_of_names_agree_with_the_schema():
    assert set(FORMER)<=set(fields()) and set(FORMER_VALUES)<=set(fields())
    former = [(k.rpartition('.')[0], o) for k,old in FORMER.items() for o in old.split()]
    assert len(former)==len(set(former)) and not [o for s,o in former if o in keys(s)] and not set(GONE)&{k.rpartition('.')[2] for k in fields()}
    for k,words in FORMER_VALUES.items(): assert not set(words)&set(choices(k)) and set(words.values())<=set(choices(k))

# ---- secrets

SECRET = 'hf_'+'aB3dE6gH9j'*3

@pytest.mark.parametrize('line', ['token: TOKEN', 'training: {use_auth_token: TOKEN}', 'hf_tokn: TOKEN', 'revision: TOKEN', 'lora: {r: TOKEN}', 'lora: {target_modules: [q, TOKEN]}',
    'TOKEN: 1', 'lora: {TOKEN: 1}', 'lora: TOKEN', 'lora: {r: {TOKEN: 1}}', 'TOKEN', '"TOKEN', 'data: {train: TOKEN}', 'lora: {r: "TOKEN'])
def test_a_token_is_refused_and_never_repeated(line):
    with pytest.raises(QLoRAError) as e: parse(BASE+line.replace('TOKEN', SECRET))
    err = e.value
    assert not any(SECRET in text for text in (str(err), repr([vars(p) for p in err.errors]), err._render_traceback_()[0])) and err.__cause__ is None

def test_a_token_of_a_default_or_of_a_copy_is_refused():
    with pytest.raises(QLoRAError, match='access tokens'): parse(BASE, defaults={'tracking.report_to': SECRET})
    with pytest.raises(QLoRAError, match='access tokens'): parse(BASE).with_(revision=SECRET)

# ---- keys that contradict each other

@pytest.mark.parametrize('line, key', [
    ('quantization: {bits: 8, bnb_4bit_quant_type: nf4}', 'quantization.bnb_4bit_quant_type'), ('quantization: {bits: none, bnb_4bit_use_double_quant: true}', 'quantization.bnb_4bit_use_double_quant'),
    ('training: {max_steps: 5, num_train_epochs: 1}', 'training.num_train_epochs'), ('training: {eval_strategy: steps}', 'training.eval_strategy'),
    ('lora: {init_lora_weights: pissa}', 'lora.init_lora_weights'), ('quantization: {bits: 8}\nlora: {init_lora_weights: orthogonal}', 'lora.init_lora_weights')])
def test_contradictions(line, key): assert [p.key for p in refused(BASE+line)]==[key]

def test_two_sources_of_validation_rows(): assert [p.key for p in refused('model: demo\ndata: {train: demo, validation: demo, validation_size: 0.1}')]==['data.validation_size']
def test_pissa_on_an_unquantised_base(): assert 'changes the base weights' in parse(BASE+'quantization: {bits: none}\nlora: {init_lora_weights: pissa}').notes[0]

def test_the_cell_outranks_config_and_says_so():
    c = parse(BASE+'training: {max_steps: 5}', defaults={'training.num_train_epochs': 1, 'lora.r': 8, 'training.packing': True, 'lora.target_modules': ['q_proj']})
    assert c.training.max_steps==5 and c.training.num_train_epochs==3 and c.sources['training.num_train_epochs']=='default' and c.training.packing is True
    assert c.lora.r==8 and c.sources['lora.r']=='%config' and c.lora.target_modules==('q_proj',)
    assert c.notes==['training.num_train_epochs from %config is overridden by training.max_steps']
    assert parse(BASE+'lora: {r: 4}', defaults={'lora.r': 8}).lora.r==4
    assert parse(BASE, defaults={'training.eval_strategy': 'steps'}).training.eval_strategy=='no'
    assert told(BASE, defaults={'lora.rr': 8, 'lora.r': 'x'})==[(None, 'lora.rr', 'r'), (None, 'lora.r', None)]

@pytest.mark.parametrize('line, key', [('trust_remote_code: true', 'trust_remote_code'), ('lora: {use_dora: true}', 'lora.use_dora'), ('training: {eval_steps: 5}', 'training.eval_steps'),
    ('training: {lr_scheduler_type: constant, warmup_steps: 5}', 'training.warmup_steps'), ('lora: {init_lora_weights: olora}', 'lora.init_lora_weights'),
    ('lora: {init_lora_weights: false}', 'lora.init_lora_weights')])
def test_notes(line, key): assert [n.partition(':')[0] for n in parse(BASE+line).notes]==[key]

@pytest.mark.parametrize('data, training, when', [('', '', 'no'), ('validation_size: 0.1', '', 'epoch'), ('validation: demo', 'eval_steps: 5', 'steps'),
    ('validation: demo', 'eval_strategy: no', 'no'), ('validation_size: 20', 'eval_strategy: auto', 'epoch')])
def test_when_to_validate(data, training, when):
    c = parse(f'model: demo\ndata: {{train: demo, {data}}}\n'+(f'training: {{{training}}}' if training else ''))
    assert c.training.eval_strategy==when

# ---- the value itself

def test_immutable():
    c = parse(HOUSE)
    with pytest.raises(Exception, match='frozen'): c.model = 'x'
    with pytest.raises(Exception, match='frozen'): c.lora.r = 8
    c.sources['lora.r'] = c.lines['lora.r'] = c.flat['lora.r'] = 'x'
    assert c.sources['lora.r']=='cell' and c.lines['lora.r']==5 and c.lora.r==16

def test_no_break_spaces_of_web_pages(): assert parse('model: demo\ndata:\n\xa0\xa0train: demo\n\xa0 system: a\xa0b').data.system=='a\xa0b'

def test_fingerprint():
    c = parse(HOUSE)
    canonical = {k: v for k,v in c.flat.items() if k.split('.')[0] not in ('task', 'method', 'output', 'tracking', 'hardware') and not re.match(r'training\.(save_|logging_|preflight|on_oom)|data\.(text|label|validation_|header|sample_by|max_lost)', k) or k=='data.validation_size'}
    import hashlib
    assert c.fingerprint==hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(',', ':')).encode()).hexdigest()
    same = dict(zip(['output.output_dir', 'tracking.report_to', 'hardware.gpu', 'training.save_steps', 'training.save_minutes', 'training.logging_steps'], ['x', 'wandb', 'T4', 7, 1, 3]))
    for k,v in same.items(): assert c.with_(**{k: v}).fingerprint==c.fingerprint and c.with_(**{k: v})!=c
    for k,v in {'lora.r': 8, 'training.seed': 1, 'data.train': 'b.jsonl', 'model': 'demo', 'quantization.bits': 8}.items(): assert c.with_(**{k: v}).fingerprint!=c.fingerprint

def test_changed_copies():
    c = parse(BASE+'training: {num_train_epochs: 1}\nlora: {rank: 8}')
    d = c.with_(**{'training.max_steps': 5, 'lora.target_modules': ('q_proj',), 'training.packing': False})
    assert (d.training.max_steps, d.lora.target_modules, d.training.packing, d.lora.r)==(5, ('q_proj',), False, 8) and d.sources['training.max_steps']=='derived'
    assert c.training.max_steps is None and d.notes==[*c.notes, 'training.num_train_epochs from cell is overridden by training.max_steps']
    assert d.with_(**{'lora.r': None}).lora.r==16
    assert c.with_(**{'data.validation_size': 0.5}).training.eval_strategy=='epoch'
    for bad in ({'lora.rr': 1}, {'lora.r': 0}, {'rr': 1}, {'quantization.bits': 8, 'quantization.bnb_4bit_quant_type': 'fp4'}, {'model': None}):
        with pytest.raises(QLoRAError): c.with_(**bad)

def test_errors_of_other_rooms_have_the_line():
    e = parse(HOUSE).error('training.max_length', 'no row fits', 'x').errors[0]
    assert (e.line, e.key, e.value, e.suggestion)==(6, 'training.max_length', 1024, 'x')

def test_shown():
    c = parse(HOUSE.replace('lora_alpha', 'alpha').replace('tickets', '<b>'))
    html,text = c._repr_html_(),str(c)
    assert '<b>' not in html and '&lt;b&gt;.jsonl' in html and html.index('training.max_length')<html.index('<details>')<html.index('training.optim')
    assert 'class="note"' in html and 'note: line 5: lora.alpha is now called lora.lora_alpha' in text and re.search(r'lora.r +16 +cell +5', text)
    assert c._repr_mimebundle_()['text/plain']==text

# ---- one declaration for help, table, completion

def test_every_field_is_documented_once():
    rows = docs_table().rows
    assert [r[0] for r in rows]==list(fields()) and all(len(f.description)>15 and f.description[-1]!='.' for f in fields().values())
    assert all(c.__doc__ for c in sections().values()) and len({f.description for f in fields().values()})==len(fields())
    html,text = docs_table()._repr_html_(),' '.join(str(docs_table()).split())
    for k,f in fields().items(): assert k in html and k in text and ' '.join(f.description.split()) in text and allowed(k) in text
    assert [r[0] for r in docs_table('output').rows]==['output.output_dir', 'output.mirror_dir'] and docs_table('data').rows[0][1]=='none' and docs_table().rows[0][1]=='required'
    with pytest.raises(QLoRAError, match="Did you mean 'lora'"): docs_table('laro')

def test_names_are_those_of_the_libraries():
    import dataclasses, inspect
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames
    from trl import SFTConfig
    def names(c): return {f.name for f in dataclasses.fields(c)}
    assert set(keys('lora'))<=names(LoraConfig) and set(keys('training'))-names(SFTConfig)=={'save_minutes', 'preflight', 'on_oom', 'early_stopping_patience'}
    assert set(keys('quantization'))-set(inspect.signature(BitsAndBytesConfig.__init__).parameters)=={'bits'}
    assert set(OPTIMIZERS)<={o.value for o in OptimizerNames} and set(SCHEDULES)<={s.value for s in SchedulerType}
    assert not [o for o,why in GONE.items() if why.startswith('removed from transformers') and o in names(SFTConfig)] and {'output_dir', 'report_to'}<=names(SFTConfig)

@pytest.mark.parametrize('before, words', [
    ('', ['model', 'revision', 'trust_remote_code', 'task', 'method', *sections()]), ('tr', ['trust_remote_code', 'training', 'tracking']), ('lora: {r: 8, lo', ['lora_alpha', 'lora_dropout']), ('lora:\n  use_', ['use_rslora', 'use_dora']),
    ('lora:\n  use_dora: ', ['true', 'false']), ('lora: {use_dora: t', ['true']), ('quantization:\n  bnb_4bit_quant_type: n', ['nf4']), ('quantization: {bits: 8, bnb_4bit_quant_type:', ['nf4', 'fp4']),
    ('model: ', ['demo']), ('model: demo\ndata: {train: d', ['demo']), ('lora: {target_modules: [q_proj, v_proj], lo', ['lora_alpha', 'lora_dropout']), ('lora: {r: 8}', []), ('lora: {r: 8}\n', ['model', 'revision', 'trust_remote_code', 'task', 'method', *[s for s in sections() if s!='lora']]),
    ('lora:\n  r: 8 # lo', []), ('data:\n  prompt: "a: {b}"\n  s', ['split', 'system', 'sample_by']), ('data: {prompt: "{b}, ', []), ('data: {prompt: "{b}", s', ['split', 'system', 'sample_by']), ('lora: {\n  r: 8,\n  lora_d', ['lora_dropout']), ('%%ql', []),
    ('lora:\n  target_modules: a', ['all-linear', 'attention-only']), ('nonsense:\n  a', []), ('lora', ['lora']), ('lora: x', []), ('data:\n  chat_template: ', list(CHAT_TEMPLATES))])
def test_completion(before, words): assert complete(before)==words

def test_completion_knows_the_rest_of_the_cell():
    assert complete('model: demo\nlora:\n  lora_', 'model: demo\nlora:\n  lora_\n  lora_alpha: 8\ntraining: {lora_dropout: 1}')==['lora_dropout']
    assert 'model' not in complete('', '\nmodel: demo')

@settings(max_examples=200, deadline=None)
@given(st.text(' \n:{}[],"\'#abdelmnorst_%-', max_size=60), st.integers(0, 60))
def test_completion_never_fails(text, at): assert all(isinstance(w, str) for w in complete(text[:at], text))

# ---- methods of one's own

class Norms(Section):
    "The norms"
    which: Literal['all', 'last'] = Field('all', description='norms that are trained: all of them, or the last')
    scale: float = Field(1., gt=0, le=10, description='factor on the learning rate of the norms')

def norms_of(arch, section): return [(t.shape, t.count) for t in arch.tensors if t.group=='norms']
def is_norm(name, parameter): return 'norm' in name
def as_it_is(base, section, task): return base
NORMS = Method('norms', 'norms only', Norms, (8, 'none'), norms_of, is_norm, attach=as_it_is)
USED = BASE+'method: norms\n'

@pytest.fixture
def norms():
    register(NORMS)
    yield NORMS
    METHODS.pop('norms', None)

def test_a_registered_method_is_known_everywhere(norms):
    c = parse(USED+'norms: {which: last}')
    assert c.method=='norms' and c.section==c.norms==Norms(which='last') and c.lines['norms.which']==4 and c.lora.r==16
    assert list(c.flat)==list(c.sources)==[k for k in fields() if not k.startswith(('lora.', 'classification.'))] and 'norms.which' in str(c) and 'lora.r' not in str(c)
    assert parse(c.to_yaml())==c and c.to_yaml().endswith('method: norms\ndata:\n  train: demo\nnorms:\n  which: last\n')
    assert len({o.fingerprint for o in (c, parse(USED), parse(BASE))})==3 and c.with_(**{'norms.which': None})==parse(USED)
    assert docs_table('norms').rows==(('norms.which', 'all', 'all or last', fields()['norms.which'].description), ('norms.scale', '1', allowed('norms.scale'), fields()['norms.scale'].description))
    assert list(sections())==['data', 'quantization', 'lora', 'norms', 'classification', 'training', 'output', 'tracking', 'hardware']
    assert complete('method: ')==choices('method')==['lora', 'norms'] and complete('norms: {which: l')==['last'] and 'norms' in complete('')
    assert told(USED+'norms: {wich: last}\nscale: 2')==[(4, 'norms.wich', 'which'), (5, 'scale', 'norms.scale')]
    assert told(USED+'norms: {which: lst, scale: 20}')==[(4, 'norms.which', 'last'), (4, 'norms.scale', None)]
    assert told(BASE+'method: nroms')==[(3, 'method', 'norms')]

def test_a_removed_method_is_unknown_again(norms):
    before,old = parse(BASE),parse(USED)
    assert METHODS.pop('norms') is norms and old.section.which=='all' and parse(BASE)==before
    assert told(USED)==[(3, 'method', None)] and told(BASE+'norms: {which: last}')==[(3, 'norms', None)] and 'norms' not in sections()
    register(norms)
    assert parse(USED)==old and parse(BASE).fingerprint==before.fingerprint

def test_a_section_belongs_to_its_method(norms):
    assert [str(p) for p in refused(USED+'lora:\n  r: 8\n  lora_alpha: 8')]==['line 5, lora: belongs to method lora, and this run uses norms']
    assert told(BASE+'norms: {which: last, scale: 2}')==[(3, 'norms', None)]
    c = parse(USED, defaults={'lora.r': 8, 'norms.scale': 2})
    assert c.notes==['lora.r from %config is ignored: it belongs to method lora, and this run uses norms'] and c.norms.scale==2
    assert parse(BASE+'lora: {r: 8}').with_(method='norms').notes==['lora.r from cell is ignored: it belongs to method lora, and this run uses norms']

def test_a_method_says_on_which_bases_it_is_trained(norms):
    c = parse(USED)
    assert c.quantization.bits==8 and c.sources['quantization.bits']=='derived' and 'bits' not in c.to_yaml() and parse(USED+'quantization: {bits: none}').quantization.bits=='none'
    assert [str(p) for p in refused(USED+'quantization: {bits: 4}')]==["line 4, quantization.bits: must be 8 or none with method norms, got 4"]
    assert [p.key for p in refused(USED+'quantization: {bnb_4bit_quant_type: nf4}')]==['quantization.bnb_4bit_quant_type']

def test_a_method_that_is_only_planned_is_refused():
    assert [str(p) for p in refused(BASE+'method: full')]==['line 3, method: must be lora: full is planned for comparison, but not trained yet']
    assert [str(p) for p in refused(BASE+'full: {r: 8}')]==['line 3, full: the method full has no settings']

# A key that came later leaves the fingerprints of existing runs as they were, where it has its default
def test_fingerprints_of_before_the_key_method():
    assert parse(BASE).fingerprint=='b485a1c9d9175eb358ae031811c02aa24556adebc0b74df2b95edcde734eeeeb'
    assert parse(HOUSE).fingerprint=='945b883ea1793b03577d70da8eef8e6375c4da6c8a689d70e4b89b423812623f'

# ---- what the surroundings say

LLAMA = find('meta-llama/Llama-2-7b-hf')

def test_where_rows_come_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in ('tickets.jsonl', 'both', 'valid.csv'): (tmp_path/n).write_text('{}')
    (tmp_path/'folder').mkdir()
    space = dict(rows=[{}], both=[{}], folder=[{}], text='tickets.jsonl', number=4, os=sys, f=len)
    def kind(name, key='train'): return resolve(parse(f'model: demo\ndata: {{train: demo, {key}: {name}}}' if key!='train' else f'model: demo\ndata: {{train: {name}}}'), space).kinds
    assert kind('demo')=={'data.train': 'demo'} and kind('tickets.jsonl')==kind('./tickets.jsonl')==kind(str(tmp_path/'tickets.jsonl'))=={'data.train': 'file'}
    assert kind('rows')==kind('folder')=={'data.train': 'variable'} and kind('timdettmers/openassistant-guanaco')==kind('squad')=={'data.train': 'hub'}
    assert kind('valid.csv', 'validation')=={'data.train': 'demo', 'data.validation': 'file'}
    for name,words,meant in [('both', 'both a file and a variable', None), ('tickets.jsnl', 'no such file: tickets.jsnl.', 'tickets.jsonl'), ('./ticket.jsonl', 'no such file', './tickets.jsonl'), ('tickets.json', 'no such file', 'tickets.jsonl'),
        ('no/such/dir/a.csv', 'no such folder: no/such/dir', None), ('./folder', 'is an empty folder', None), ('"*.cvs"', 'no file matches', None), ('text', 'got a value of type str', None), ('os', 'must be a DataFrame', None), ('"a b"', 'not a file, a variable or a Hub id', None)]:
        with pytest.raises(QLoRAError) as e: kind(name)
        p, = e.value.errors
        assert words in p.message and p.key=='data.train' and p.line==2 and (meant is None or p.suggestion==meant)
    with pytest.raises(QLoRAError, match='data.validation: no such file'): kind('valid2.csv', 'validation')
    assert resolve(parse('model: demo\ndata: {train: row}'), space).notes==['data.train: row is neither a file nor a variable, so it is looked for on the Hub. There is a variable rows.']

def test_a_model_folder_must_exist(tmp_path):
    (tmp_path/'llama-7b').mkdir()
    assert resolve(parse(f'model: {tmp_path}/llama-7b\ndata: {{train: demo}}')).model.endswith('llama-7b')
    with pytest.raises(QLoRAError) as e: resolve(parse(f'model: {tmp_path}/lama-7b\ndata: {{train: demo}}'))
    assert e.value.errors[0].suggestion==f'{tmp_path}/llama-7b' and e.value.errors[0].line==1

def test_what_the_architecture_says():
    c = resolve(parse(BASE+'training: {max_length: 8192}\nlora: {target_modules: [q_proj]}'), architecture=LLAMA)
    assert c.training.max_length==4096 and c.sources['training.max_length']=='derived'
    assert c.notes==['training.max_length: 8,192 is beyond the 4,096 positions of Llama-2-7B, so 4,096 is used']
    unlimited = replace(LLAMA, max_position_embeddings=None)
    assert resolve(parse(BASE), architecture=LLAMA)==parse(BASE)==resolve(parse(BASE), architecture=unlimited)
    with pytest.raises(QLoRAError) as e: resolve(parse(BASE+'lora: {target_modules: [q_proj, gat_proj]}'), architecture=LLAMA)
    p, = e.value.errors
    assert str(p)=="line 3, lora.target_modules: Llama-2-7B has no linear layer 'gat_proj' to adapt; it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj. Did you mean 'gate_proj'?"

CPU,T4,A100 = Device('cpu', 'a CPU'),Device('cuda', 'T4', capability=(7, 5)),Device('cuda', 'A100', capability=(8, 0), bf16=True)

def test_what_the_machine_says():
    cpu,t4 = resolve(parse(BASE), device=CPU),resolve(parse(BASE), device=T4)
    assert (cpu.training.optim, cpu.training.gradient_checkpointing)==('adamw_torch', False) and cpu.sources['training.optim']=='derived'
    assert (t4.training.optim, t4.training.gradient_checkpointing, t4.notes)==('paged_adamw_32bit', True, [])
    assert cpu.notes==['training.optim: paged_adamw_32bit needs an NVIDIA GPU, so adamw_torch is used here']
    assert resolve(parse(BASE+'training: {optim: paged_lion_8bit, gradient_checkpointing: true}'), device=CPU).training.optim=='lion_8bit'
    asked = BASE+'quantization: {bnb_4bit_compute_dtype: bfloat16}'
    assert [len(resolve(parse(asked), device=d).notes) for d in (T4, A100)]==[1, 0] and resolve(parse(asked), device=T4).quantization.bnb_4bit_compute_dtype=='bfloat16'
    for name in OPTIMIZERS: assert not OPTIMIZERS[resolve(parse(BASE+f'training: {{optim: {name}}}'), device=CPU).training.optim].paged
    assert resolve(cpu, device=CPU)==cpu and resolve(cpu, device=CPU).notes==cpu.notes

def test_sections_can_be_made_in_python():
    from qlora_nb.config.schema import Data, Settings, Training
    from qlora_nb.methods.lora import Lora
    s = Settings(model='demo', data=Data(train='demo', validation_size=20), lora=Lora(target_modules=['q_proj']), training=Training(warmup_steps=0.1))
    assert (s.data.validation_size, s.lora.target_modules, s.training.warmup_steps)==(20, ('q_proj',), 0.1)
    for bad in (dict(rank=8), dict(r=0), dict(lora_dropout=float('nan'))):
        with pytest.raises(ValueError): Lora(**bad)

def test_a_gpu_of_the_catalogue():
    assert resolve(parse(BASE+'hardware: {gpu: T4}')).hardware.gpu=='T4'
    with pytest.raises(QLoRAError, match='line 3, hardware.gpu: no GPU'): resolve(parse(BASE+'hardware: {gpu: T44}'))

def test_other_rooms_know_every_choice():
    from qlora_nb.planning.optimizers import OPTIMIZER_STATE
    assert choices('data.chat_template')==['auto', 'tokenizer', *TEMPLATES] and choices('training.optim')==list(OPTIMIZERS)
    assert OPTIMIZER_STATE=={o.name: (o.copies, o.kind) for o in OPTIMIZERS.values()}

# ---- imports

def test_import_is_light():
    heavy = "('torch', 'transformers', 'numpy', 'peft', 'bitsandbytes', 'datasets', 'trl', 'IPython')"
    subprocess.run([sys.executable, '-c', f'import qlora_nb.config.resolve, qlora_nb.config.complete, sys; bad=[m for m in {heavy} if m in sys.modules]; assert not bad, bad'], check=True)

# ---- fuzz: only QLoRAError ever escapes

def survives(text, **kw):
    "Read it; what is refused is refused in lines of the cell"
    try: c = parse(text, **kw)
    except QLoRAError as e:
        last = text.replace('\r\n', '\n').replace('\r', '\n').count('\n')+1
        for p in e.errors: assert p.message and len(str(p).splitlines())==1 and (p.line is None or 1<=p.line<=last)
        assert len(str(e).splitlines())==len(e.errors)+(len(e.errors)>1)
        return None
    assert parse(c.to_yaml())==c and c._repr_html_() and str(c) and len(c.fingerprint)==64
    return c

FUZZ = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
ODD = ['1e-4', '.nan', 'nan', '-.inf', '9'*400, '1e999', '-0', '0x10', '012', '1:30', '2024-01-01', 'yes', 'No', '~', 'null', '', '""', "''", '[]', '{}', '[a, [b]]', '{a: b}', '&a x', '*a', '!!int 4', '!x', '|\n    a\n   b',
    '>-\n    x', '@x', '%x', '`', '? x', '- a', '"\\ud800"', '"\\U00110000"', "'it''s'", 'é漢字🙂', '\u202e', '\x85', '\ufeff', 'a: b', 'a #b', '#', '...', '---', '<<', '=', 'true', '4', '8', '0.5', 'demo', 'auto', 'none']
SOUP = st.lists(st.sampled_from([*ODD, *fields(), *sections(), *GONE, *' \n:{}[],-#"\'', '\n  ', ': ', ',', '\t', '\r\n']), max_size=25).map(''.join)
NAMES = {k.rpartition('.')[2] for k in fields()}|set(sections())
OLD = {o for old in FORMER.values() for o in old.split()}|set(GONE)
KEYS = st.one_of(st.sampled_from(sorted(NAMES|OLD)), st.text(max_size=12), st.integers(), st.none(), st.booleans())
LEAVES = [st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(), st.binary(max_size=8), st.sampled_from(ODD)]
VALUES = st.recursive(st.one_of(LEAVES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=5)
REAL = [HOUSE, BASE, HOUSE+'\nquantization:\n  load_in_4bit: yes\n  double_quant: off\noutput: {output_dir: "a b"}\nhardware: {gpu: T4}\n',
    'model: demo\ndata:\n  train: demo\n  validation_size: 0.1\n  prompt: "{a}: {b}"\n  system: |\n    be kind\n    and short\ntraining:\n  eval_steps: 5\n  max_steps: 50\n  packing: on\nlora:\n  target_modules: [q_proj, v_proj]\ntracking: {report_to: [wandb]}\n']

@settings(max_examples=600, **FUZZ)
@given(st.one_of(st.text(max_size=200), SOUP))
def test_fuzz_text(text): survives(text)

@settings(max_examples=600, **FUZZ)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.booleans())
def test_fuzz_structures(tree, flow): survives(yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True, sort_keys=False))

@settings(max_examples=600, **FUZZ)
@given(st.sampled_from(sorted(fields())), st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers().map(str), st.floats().map(str)))
def test_fuzz_values(key, value):
    section,_,name = key.rpartition('.')
    survives((f'{section}:\n  {name}: {value}\n' if section else f'{name}: {value}\n')+'\n'.join(l for l in BASE.splitlines() if not l.startswith((section or name)+':')))

EDIT = st.tuples(st.sampled_from(['cut', 'put', 'swap', 'double']), st.integers(0, 400), st.sampled_from([*ODD, *' \n\t:{}[],#-"\'&*!|>%@`0aä']))

@settings(max_examples=700, **FUZZ)
@given(st.sampled_from(REAL), st.lists(EDIT, min_size=1, max_size=5))
def test_fuzz_mutated_configs(text, edits):
    for how,at,new in edits:
        at %= len(text)+1
        lines = text.split('\n')
        if how=='cut': text = text[:at]+text[at+1+len(new):]
        elif how=='put': text = text[:at]+new+text[at:]
        elif how=='swap': text = text[:at]+text[at+1:at+2]+text[at:at+1]+text[at+2:]
        else: text = '\n'.join(lines[:at%len(lines)+1]+lines[at%len(lines):])
    survives(text)

@settings(max_examples=200, **FUZZ)
@given(st.dictionaries(st.sampled_from([*fields(), 'lr', 'lora', 'lora.rank', '', '.']), st.one_of(VALUES, st.just(object())), max_size=4))
def test_fuzz_defaults(defaults): survives(BASE, defaults=defaults)

# ---- fuzz: the nearest key is named

@cache
def distance(a, b): # plain Levenshtein, by recursion
    if not a or not b: return len(a)+len(b)
    return distance(a[1:], b[1:]) if a[0]==b[0] else 1+min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

@cache
def with_swaps(a, b): # the same, a swap of neighbours counting one
    if not a or not b: return len(a)+len(b)
    best = min(with_swaps(a[1:], b)+1, with_swaps(a, b[1:])+1, with_swaps(a[1:], b[1:])+(a[0]!=b[0]))
    return min(best, 1+with_swaps(a[2:], b[2:])) if len(a)>1 and len(b)>1 and a[0]==b[1] and a[1]==b[0] else best

def single_nearest(word, options, measure):
    near = sorted((measure(word, o), o) for o in options if abs(len(o)-len(word))<=2)
    return near[0][1] if near and near[0][0]<=2 and (len(near)==1 or near[1][0]>near[0][0]) else None

def known(word, section): # real keys and former keys, which are answered otherwise
    return word in NAMES or any(word in old.split() for k,old in FORMER.items() if k.rpartition('.')[0]==section)

def slip(word, i): return word[:i]+word[i+1:], word[:i]+word[i+1:i+2]+word[i:i+1]+word[i+2:] # a letter dropped, two swapped

def check_suggestion(word, section):
    wants = {w for w in (single_nearest(word, keys(section), m) for m in (distance, with_swaps)) if w}
    if len(word)<4 or known(word, section) or not wants: return False
    assert len(wants)==1
    line = f'{word}: 1\n' if not section else f'{section}: {{{word}: 1}}\n'
    found = [p for p in refused(BASE.replace('{train: demo}', f'{{train: demo, {word}: 1}}') if section=='data' else BASE+line) if p.key==f'{section}.{word}'.strip('.')]
    assert [p.suggestion for p in found]==[*wants]
    return True

PLACES = [(s, k) for s in ('', *sections()) for k in keys(s)]
MUTANT = st.tuples(st.sampled_from(PLACES), st.randoms(use_true_random=False), st.integers(1, 3))

@settings(max_examples=700, **FUZZ)
@given(MUTANT)
def test_fuzz_suggestions(mutant):
    (section,word),rnd,slips = mutant
    for _ in range(slips):
        at,letter = rnd.randrange(len(word)+1),rnd.choice('abcdefghijklmnopqrstuvwxyz_0123456789ABC')
        word = rnd.choice([*slip(word, at), word[:at]+letter+word[at:], word[:at]+letter+word[at+1:]])
    if re.fullmatch('[A-Za-z_][A-Za-z_0-9]*', word): check_suggestion(word, section)

def test_every_dropped_and_every_swapped_letter():
    words = {(s, w) for s,k in PLACES for i in range(len(k)) for w in slip(k, i) if re.fullmatch('[a-z_][a-z_0-9]*', w)}
    assert sum(check_suggestion(w, s) for s,w in random.Random(0).sample(sorted(words), 400))>300

def test_an_exact_key_of_another_section_hides_no_misspelling_but_one():
    near = {(k, s) for s in ('', *sections()) for t,k in PLACES if k not in keys(s) and len(k)>3 and any(with_swaps(k, o)<=2 for o in keys(s))}
    assert near=={('packing', ''), ('tracking', 'training')}

# ---- round trip

def valid(key):
    words = 'model revision data.train data.validation data.prompt data.completion data.validation_prompt data.validation_completion data.system data.group data.name data.split data.revision'.split()
    if key in (*words, 'output.output_dir', 'output.mirror_dir', 'hardware.gpu'):
        return st.text(st.characters(blacklist_categories=['Cs', 'Cc']), min_size=1, max_size=12).filter(lambda s: s.strip() and 'hf_' not in s)
    if key=='data.weights': return st.lists(st.floats(.1, 9), min_size=2, max_size=3)
    if key=='lora.target_modules': return st.one_of(st.sampled_from(['all-linear', 'attention-only']), st.lists(st.sampled_from(['q_proj', 'true', '4', 'null']), min_size=1, max_size=3))
    if key=='tracking.sample_prompts': return st.lists(st.sampled_from(['who is it', 'true', '4', 'null']), min_size=1, max_size=3)
    if key in ('tracking.report_to', 'data.learn'): return st.one_of(st.sampled_from(choices(key)), st.lists(st.sampled_from(choices(key)[1:]), min_size=1, max_size=2))
    if choices(key): return st.sampled_from([{'true': True, 'false': False}.get(c, c) for c in choices(key)])
    limits = re.search(r'from ([\d,.]+) to ([\d,.]+)', allowed(key)) or re.search(r'(?:above|at least) ([\d,.]+) and (?:at most|below) ([\d,.]+)', allowed(key))
    low,high = [float(n.replace(',', '')) for n in limits.groups()] if limits else (0, 1)
    if allowed(key).startswith('an integer'): return st.integers(int(low), int(high))
    if 'share' in allowed(key): return st.one_of(st.integers(1, 10**6), st.floats(0, 1, exclude_min=True, exclude_max=True))
    return st.floats(low, high, exclude_min=True, exclude_max=True)

def configs(some):
    "Keys of a config; without any of `data` it only plans"
    rows = ['data.train'] if any(k.startswith('data.') for k in some) else []
    return st.fixed_dictionaries({k: valid(k) for k in ('model', *rows, *sorted(some))})
OF_TASKS = {key for task in TASKS.values() for key in ('task', *task.keys)} # Only one task's keys can stand in a cell: tests/test_tasks.py
CONFIGS = st.sets(st.sampled_from(sorted(k for k in fields() if k not in OF_TASKS and k.split('.')[0] not in TASKS)), max_size=10).flatmap(configs)

@settings(max_examples=300, **FUZZ)
@given(CONFIGS)
def test_round_trip(flat):
    for a,b in (('training.max_steps', 'training.num_train_epochs'), ('data.validation', 'data.validation_size')):
        if a in flat: flat.pop(b, None)
    if flat.get('quantization.bits', '4')!='4': flat = {k: v for k,v in flat.items() if not k.startswith('quantization.bnb_4bit_') or k.endswith('dtype')}
    if flat.get('quantization.bits')!='none': flat.pop('lora.init_lora_weights', None)
    if 'data.train' in flat and not {'data.validation', 'data.validation_size'}&set(flat):
        for k in ('eval_strategy', 'early_stopping_patience', 'load_best_model_at_end'): flat.pop(f'training.{k}', None)
    tree = {}
    for k,v in flat.items(): (tree.setdefault(k.rpartition('.')[0], {}) if '.' in k else tree)[k.rpartition('.')[2]] = v
    c = parse(yaml.dump(tree, Dumper=_Quoting, allow_unicode=True))
    for k,v in flat.items():
        if (k,v)!=('training.eval_strategy', 'auto'): assert c.flat[k]==(tuple(v) if isinstance(v, list) else v.strip() if k in ('model', 'revision', 'data.group', 'data.name', 'data.split', 'data.revision') else c.flat[k] if isinstance(v, str) else v)
    again = parse(c.to_yaml())
    assert c.to_yaml().count('eval_strategy')<=('training.eval_strategy' in flat or c.training.eval_strategy=='steps')
    assert again==c and again.fingerprint==c.fingerprint and again.to_yaml()==c.to_yaml() and (c.data.train is None)==('data.train' not in flat)

@pytest.mark.parametrize('word', ['1.10', '0123', '1_000', 'on', 'off', 'yes', 'True', '2024-01-01', '0x10', '1e5', '1:30', 'NaN'])
def test_a_text_that_looks_like_a_number_stays_as_it_is_written(word):
    c = parse(f'model: demo\nrevision: {word}\ndata: {{train: demo, split: {word}, name: {word}}}\n')
    assert c.revision==c.data.split==c.data.name==word and parse(c.to_yaml())==c and c.with_(**{'lora.r': 8}).revision==word
    assert parse('model: demo\nrevision: $tag\ndata: {train: demo}\n', namespace=dict(tag=word)).revision==word
