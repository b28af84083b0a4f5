"Every task on every class of model that does it: gate, run, resume, report and comparison, on tiny random models"
import hashlib
import pytest, tiny, torch
from qlora_nb.config.cell import parse
from qlora_nb.errors import QLoRAError
from qlora_nb.results.evaluate import compare, generate
from qlora_nb.store.checkpoints import checkpoints, curves
from qlora_nb.tasks.register import TASKS
from qlora_nb.tokens.gate import prepare
from qlora_nb.training.loading import load_tokenizer
from qlora_nb.training.start import resume, train

# ---- models

SIZES = dict(vocab_size=128, hidden_size=128, num_hidden_layers=2, num_attention_heads=2)

def encoder_tokenizer():
    "Characters between [CLS] and [SEP]; no end-of-sequence token, as BERT's"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    known = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *map(chr, range(32, 127))]
    t = Tokenizer(models.BPE({c: i for i,c in enumerate(known)}, [], unk_token='[UNK]'))
    t.pre_tokenizer,t.decoder = pre_tokenizers.Split('', 'isolated'),decoders.Fuse()
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token='[UNK]', pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]', model_max_length=96)

def bert(T): return T.BertModel(T.BertConfig(**SIZES, intermediate_size=256, max_position_embeddings=96), add_pooling_layer=False)
def distilbert(T): return T.DistilBertModel(T.DistilBertConfig(vocab_size=128, dim=128, hidden_dim=256, n_layers=2, n_heads=2, max_position_embeddings=96))
def phi(T): return T.PhiForCausalLM(T.PhiConfig(**SIZES, intermediate_size=256, bos_token_id=1, eos_token_id=2))
def opt(T): return T.OPTForCausalLM(T.OPTConfig(**SIZES, word_embed_proj_dim=128, ffn_dim=256, bos_token_id=1, eos_token_id=2, pad_token_id=0))

MADE = dict(bert=(bert, encoder_tokenizer), distilbert=(distilbert, encoder_tokenizer), phi=(phi, tiny.tokenizer), opt=(opt, tiny.tokenizer))

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Name of a class → folder of such a model, made when it is asked for"
    import transformers
    found = {}
    def folder(name):
        if name in found: return found[name]
        place = tmp_path_factory.mktemp(name)
        if name=='llama': tiny.model_folder(place)
        else:
            torch.manual_seed(0)
            make,tok = MADE[name]
            make(transformers).save_pretrained(place)
            tok().save_pretrained(place)
        return found.setdefault(name, str(place))
    return folder

# ---- rows

def labelled(n, first=0): return [dict(text=f'{("the cat sat here", "a dog ran off")[i%2]} {i}', label=('cat', 'dog')[i%2]) for i in range(first, first+n)]

ROWS = dict(classification=dict(rows=labelled(16), held=labelled(6, 100)))

def cell(folder, out, task='classification', extra='', **training):
    t = dict(per_device_train_batch_size=4, gradient_accumulation_steps=1, max_length=64, learning_rate=5e-3, max_steps=4, save_steps=100,
        eval_strategy='steps', eval_steps=2) | training
    lines = ''.join(f'  {k}: {v}\n' for k,v in t.items())
    return f'model: {folder}\ntask: {task}\ndata: {{train: rows, validation: held}}\nlora: {{lora_dropout: 0.1}}\ntraining:\n{lines}output: {{output_dir: {out}}}\n{extra}'

CASES = [('classification', name) for name in ('llama', 'bert', 'distilbert', 'phi', 'opt')]

def final(run):
    "What must be equal: adapter, optimizer, and every loss"
    last = checkpoints(run.folder)[-1]
    state = torch.load(last/'optimizer.pt', weights_only=True)['state']
    parts = [v.numpy().tobytes() for _,s in sorted(state.items()) for _,v in sorted(s.items()) if torch.is_tensor(v)]
    return hashlib.sha256((run.folder/'adapter'/'adapter_model.safetensors').read_bytes()+b''.join(parts)).hexdigest(), *curves(run.folder)

# ---- from the gate to the comparison

@pytest.mark.parametrize('task,name', CASES)
def test_a_run_goes_all_the_way_and_goes_on_exactly(models, tmp_path, task, name):
    "Gate, training, validation, report, comparison; and stopped after two steps and resumed, the same to the bit"
    text,rows = cell(models(name), tmp_path, task),ROWS[task]
    one = train(text, rows, name='one')
    assert one.status=='finished' and one.config.task==task and len(one.losses)==4 and len(one.evals)==2
    assert all(p.dtype==torch.float32 for p in one.trainer.model.parameters() if p.requires_grad)
    assert one.scored and all(f'{key}: {value}' in str(one) for key,value in one.scored)
    assert one.scored[0][0] in (one.folder/'report.html').read_text()
    found = compare(one)
    assert set(found.scores)==set(TASKS[task].metrics) and len(found.after)==6 and 'base model' in str(found) and found._html()
    want,answer = final(one),generate(one, rows['held'][0]['text'])
    two = train(text, rows, name='two', on_change=tiny.at_step(2, lambda run: run.stop('test')))
    again = resume(str(two.folder), text, rows)
    assert two.step==2 and final(again)==want and generate(again, rows['held'][0]['text'])==answer and again.scored==one.scored

# ---- classification

@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('name', ['bert', 'distilbert', 'llama'])
def test_heads_are_trained_and_never_quantised(models, tmp_path, name, bits):
    "Finding: transformers would quantise a fresh head, and bitsandbytes trains no quantised weight"
    run = train(cell(models(name), tmp_path, eval_strategy='no', max_steps=2)+f'quantization: {{bits: {bits}}}\n', ROWS['classification'])
    heads = dict(bert=['bert.pooler', 'classifier'], distilbert=['pre_classifier', 'classifier'], llama=['score'])[name]
    inner = run.model.get_base_model()
    for head in heads:
        wrapped = inner.get_submodule(head)
        trained = [p for n,p in wrapped.named_parameters() if '.default' in f'.{n}']
        assert trained and all(p.requires_grad and p.dtype==torch.float32 for p in trained)
        assert {type(m).__name__ for m in wrapped.modules()}.isdisjoint({'Linear4bit', 'Linear8bitLt'})
        before,after = (dict(getattr(wrapped, part).named_parameters()) if part=='original_module' else dict(wrapped.modules_to_save['default'].named_parameters())
            for part in ('original_module', 'modules_to_save'))
        assert any(not torch.equal(before[n], after[n]) for n in before)
    assert {type(m).__name__ for m in inner.modules()} & {'Linear4bit', 'Linear8bitLt'}
    assert run.model.config.id2label=={0: 'cat', 1: 'dog'}

def test_labels_are_counted_and_odd_ones_are_said(models, tmp_path):
    rows = [dict(text=f'the cat {i}', label='cat') for i in range(19)]+[dict(text='a dog', label='dog'), dict(text=' ', label='cat'), dict(text='x', label=None)]
    held = [*labelled(9), dict(text='a cow', label='cow')]
    config = parse(cell(models('bert'), tmp_path))
    data = prepare(config, load_tokenizer(models('bert')), dict(rows=rows, held=held))
    assert data.labels==('cat', 'dog') and data.train.findings['textless'].rows==1 and data.train.findings['empty'].rows==1
    assert data.validation.findings['unseen'].rows==1 and 'cow' in str(data.validation.findings['unseen'])
    said = ' '.join(data.notes)
    assert '95% of the rows have the label cat' in said and 'labels with fewer than 10 rows: dog (1)' in said
    assert 'cat 19 (95%), dog 1 (5%)' in str(data) and '→ ⟦cat⟧' in str(data)

def refused(text, rows, match):
    with pytest.raises(QLoRAError, match=match) as e: train(text, rows)
    assert '\n' not in str(e.value)

def test_what_is_no_classification_is_refused_in_one_line(models, tmp_path):
    one = [dict(text=f'{i}', label='cat') for i in range(6)]
    refused(cell(models('bert'), tmp_path), dict(rows=one, held=one), "all 6 training rows have the label 'cat'")
    answers = [dict(text=f'{i}', label=f'answer {i}') for i in range(12)]
    refused(cell(models('bert'), tmp_path), dict(rows=answers, held=answers), 'these are answers, not labels')
    refused(cell(models('bert'), tmp_path, 'causal-lm'), ROWS['classification'], 'is an encoder .bert., which the task causal-lm does not train: `task: classification` trains it')
    refused(cell(models('bert'), tmp_path, extra='classification: {label_names: [cat, cow]}\n'), ROWS['classification'], 'whose label is none of those that are trained')

def test_auto_takes_what_the_model_is_for(models, tmp_path):
    "An encoder classifies; a checkpoint with a classifier's head goes on as one, a language model continues texts"
    rows = ROWS['classification']
    for name,task in (('bert', 'classification'), ('llama', 'causal-lm')):
        data = prepare(parse(cell(models(name), tmp_path, 'auto', max_length=128)), load_tokenizer(models(name)), rows)
        assert data.task.name==task
    run = train(cell(models('llama'), tmp_path, 'auto', max_steps=1, eval_strategy='no').replace('validation: held', 'validation: held, text: text, label: label'), rows)
    assert run.config.task=='classification' and run.config.sources['task']=='derived' and run.config.training.max_grad_norm==1

def test_names_of_labels_and_columns_of_ones_own(models, tmp_path):
    rows = [dict(title='the cat', body=f'sat {i}', kind=('cat', 'dog')[i%2]) for i in range(8)]
    text = cell(models('llama'), tmp_path, extra='classification: {label_names: [dog, cat]}\n', max_steps=1)
    text = text.replace('validation: held', 'validation: held, text: "{title}: {body}", label: kind')
    held = [dict(title='the dog', body=f'ran {i}', kind='dog') for i in range(4)]
    run = train(text, dict(rows=rows, held=held))
    assert run.data.labels==('dog', 'cat') and run.model.config.id2label=={0: 'dog', 1: 'cat'}
    assert 'the cat: sat 0' in run.data.train.sample(0)[1][0][1] and [row['labels'] for row in run.data.train.dataset]==[1, 0]*4

def test_a_long_text_is_cut_where_the_model_ends(models, tmp_path):
    "BERT has a table of positions: longer rows are cut to it, with their last special token"
    rows = dict(rows=[dict(text='cat '*99, label='cat'), *labelled(8)], held=labelled(4, 50))
    config = parse(cell(models('bert'), tmp_path, max_length=512))
    data = prepare(config, load_tokenizer(models('bert')), rows)
    ids = data.train.dataset[0]['input_ids']
    assert len(ids)==96 and ids[-1]==3 and data.train.findings['shortened'].rows==1
    assert any('takes 96 tokens at most' in note for note in data.notes)

def test_a_cell_of_a_task_is_written_as_it_is_read():
    for text in ('task: classification', 'classification: {label_names: [a, b], num_labels: 2}', 'classification: {num_labels: auto}'):
        config = parse(f'model: demo\n{text}\ndata: {{train: demo}}')
        assert config.task=='classification' and parse(config.to_yaml())==config and parse(config.to_yaml()).fingerprint==config.fingerprint
    plain = parse('model: demo\ndata: {train: demo}')
    assert plain.fingerprint==plain.with_(task='causal-lm').fingerprint!=config.fingerprint

@pytest.mark.parametrize('text,line', [
    ('task: causal-lm\ndata: {train: demo, label: kind}', 'line 3, data.label: belongs to task classification, and this run uses causal-lm'),
    ('task: causal-lm\nclassification: {num_labels: 3}\ndata: {train: demo}', 'line 3, classification: belongs to task classification, and this run uses causal-lm'),
    ('task: classification\ndata: {train: demo, prompt: a}', 'line 3, data.prompt: is not read by task classification: name the columns in data.text and data.label'),
    ('task: classification\ndata: {train: demo, on_overlength: split}', 'must be one of truncate, drop, raise with task classification'),
    ('task: classification\ndata: {train: demo}\ntraining: {packing: true}', 'training.packing: must be false with task classification'),
    ('task: clasification\ndata: {train: demo}', "Did you mean 'classification'?")])
def test_what_does_not_belong_to_a_task_is_said_with_its_line(text, line):
    with pytest.raises(QLoRAError) as e: parse(f'model: demo\n{text}')
    assert line in str(e.value)
