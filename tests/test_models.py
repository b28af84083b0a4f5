"The shapes, counted by transformers itself and against the totals that the hub publishes"
import json, subprocess, sys
from collections import Counter

import pytest

from qlora_nb.errors import QLoRAError
from public_models import OTHERS, PRESETS
from qlora_nb.facts.models import find, from_config, presets
from qlora_nb.planning.planner import plan

SHAPES = {a.name: a for a in presets()}

# Totals of the hub's model pages (safetensors metadata), written down apart from the shapes they check
PUBLISHED = {'Llama-2-7B': 6_738_415_616, 'Llama-2-13B': 13_015_864_320, 'Llama-2-70B': 68_976_648_192, 'CodeLlama-7B': 6_738_546_688,
    'CodeLlama-13B': 13_016_028_160, 'CodeLlama-34B': 33_743_970_304, 'Llama-3-8B': 8_030_261_248, 'Llama-3-70B': 70_553_706_496,
    'Llama-3.1-8B': 8_030_261_248, 'Llama-3.1-70B': 70_553_706_496, 'Llama-3.2-1B': 1_235_814_400, 'Llama-3.2-3B': 3_212_749_824,
    'TinyLlama-1.1B': 1_100_048_384, 'SmolLM2-135M': 134_515_008, 'SmolLM2-360M': 361_821_120, 'SmolLM2-1.7B': 1_711_376_384,
    'Mistral-7B-v0.1': 7_241_732_096, 'Mistral-7B-v0.3': 7_248_023_552, 'Qwen2.5-0.5B': 494_032_768, 'Qwen2.5-1.5B': 1_543_714_304,
    'Qwen2.5-3B': 3_085_938_688, 'Qwen2.5-7B': 7_615_616_512, 'Qwen2.5-14B': 14_770_033_664, 'Qwen2.5-32B': 32_763_876_352,
    'Qwen2.5-72B': 72_706_203_648, 'Qwen3-0.6B': 596_049_920, 'Qwen3-1.7B': 1_720_574_976, 'Qwen3-4B': 4_022_468_096,
    'Qwen3-8B': 8_190_735_360, 'Qwen3-14B': 14_768_307_200, 'Qwen3-32B': 32_762_123_264}


def meta_model(arch):
    "The real model class without memory"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    kw = {k: v for k,v in arch.config.items() if k!='model_type'}
    cls = AutoModelForSeq2SeqLM if arch.encoder_decoder else AutoModelForCausalLM
    with torch.device('meta'): return cls.from_config(AutoConfig.for_model(arch.model_type, **kw))


def test_published_totals(): assert {n: SHAPES[n].num_parameters for n in PUBLISHED}==PUBLISHED


def test_every_preset_says_where_its_shape_was_read(): assert all(a.source and a.config for a in presets())


@pytest.mark.parametrize('name', SHAPES)
def test_tensors_are_those_of_transformers(name):
    ours,theirs = Counter(),Counter()
    model = meta_model(SHAPES[name])
    for n,p in model.named_parameters():
        module,leaf = n.rsplit('.', 1)
        place,shape = module.split('.')[-1],tuple(p.shape)
        if len(shape)==3: # Experts, one below the other
            number,rows,columns = shape
            if getattr(model.get_submodule(module), 'is_transposed', False): rows,columns = columns,rows
            shape = number*rows,columns
        theirs[place if leaf=='weight' else f'{place}.{leaf}', shape] += 1
    for t in SHAPES[name].tensors: ours[t.name, t.shape] += t.count
    assert ours==theirs


def test_a_token_passes_through_a_few_experts():
    found = {n: (SHAPES[n].num_parameters, SHAPES[n].active_parameters) for n in ('Qwen3-30B-A3B', 'Mixtral-8x7B', 'gpt-oss-20b', 'SmolLM3-3B')}
    assert found=={'Qwen3-30B-A3B': (30_532_122_624, 3_353_032_704), 'Mixtral-8x7B': (46_702_792_704, 12_879_925_248),
        'gpt-oss-20b': (20_914_757_184, 4_193_246_784), 'SmolLM3-3B': (3_075_098_624, 3_075_098_624)}
    assert '3,353,032,704' in str(SHAPES['Qwen3-30B-A3B'])


def test_a_language_model_inside_another_has_the_formula_of_its_family():
    a = from_config(OTHERS['gemma-3-12b-it'][0], 'gemma-3-12b-it')
    assert a.formula and a.num_parameters==12_187_325_040 and a.hidden_size==3840 and a.family.one_plus and a.model_type=='gemma3'
    assert a.linear_names==['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


SLOW = [name for name in OTHERS if not name.startswith(('gemma', 'Mistral', 'ernie', 'olmo2'))]
@pytest.mark.parametrize('name', [*PRESETS, *(pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in OTHERS)])
def test_current_models_are_planned(name):
    assert len(PRESETS)+len(OTHERS)==40
    arch = SHAPES[name] if name in PRESETS else from_config(OTHERS[name][0], name)
    p = plan(arch, gpu='A100 80GB')
    assert p.verdict=='fits' and (p.engine=='trace')==(not arch.formula)
    assert p.tensors_bytes>.4*arch.num_parameters


def test_what_the_issue_asks_for_plans_offline():
    want = ('meta-llama/Llama-2-7b-hf meta-llama/Llama-2-13b-hf meta-llama/Llama-2-70b-hf meta-llama/Llama-3.1-8B codellama/CodeLlama-7b-hf '
        'TinyLlama/TinyLlama-1.1B-Chat-v1.0 mistralai/Mistral-7B-v0.1 Qwen/Qwen2.5-7B google/gemma-2-9b microsoft/phi-2 facebook/opt-6.7b EleutherAI/gpt-neox-20b '
        'tiiuae/falcon-7b google-t5/t5-base google/flan-t5-xl HuggingFaceTB/SmolLM2-1.7B ibm/PowerLM-3b ibm-granite/granite-3.1-8b-instruct').split()
    assert all(find(n, offline=True).hub_id==n for n in want)


FALCON = dict(model_type='falcon', hidden_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=320)
@pytest.mark.parametrize('config', [FALCON | dict(new_decoder_architecture=True, num_kv_heads=2), FALCON | dict(multi_query=False, parallel_attn=False, bias=True),
    FALCON | dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    dict(model_type='opt', hidden_size=128, num_hidden_layers=2, num_attention_heads=4, ffn_dim=192, vocab_size=320, word_embed_proj_dim=128, enable_bias=False),
    dict(model_type='t5', d_model=128, d_kv=32, d_ff=192, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=320, feed_forward_proj='gated-gelu'),
    dict(model_type='gpt_neox', hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, vocab_size=320, attention_bias=False)])
def test_variants_of_a_family(config):
    a = from_config(config, 'odd')
    assert a.num_parameters==sum(p.numel() for p in meta_model(a).parameters())


@pytest.mark.parametrize('extra', [dict(attention_bias=True), dict(mlp_bias=True), dict(attention_bias=True, mlp_bias=True), dict(head_dim=48)])
def test_details_that_presets_do_not_have(extra):
    base = dict(model_type='llama', hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=192, vocab_size=320)
    a = from_config({**base, **extra}, 'odd')
    assert a.num_parameters==sum(p.numel() for p in meta_model(a).parameters())


def test_linears_and_groups_add_up():
    for a in SHAPES.values():
        assert sum(a.parameters.values())==a.num_parameters
        assert sum(l.in_features*l.out_features*l.count for l in a.linears if l.quantised)==a.parameters['linears']
        if a.family.expert_biases: continue # Those of the experts stand apart from the linear layers
        assert sum(l.out_features*l.count for l in a.linears if l.bias)==a.parameters.get('biases', 0)-a.family.head_bias*a.vocab_size


@pytest.mark.parametrize('name,want', [('demo', 'HuggingFaceTB/SmolLM2-135M-Instruct'), ('llama-2-7b', 'meta-llama/Llama-2-7b-hf'),
    ('META-LLAMA/LLAMA-2-7B-CHAT-HF', 'meta-llama/Llama-2-7b-chat-hf'), ('Llama-3.3-70B-Instruct', 'meta-llama/Llama-3.3-70B-Instruct')])
def test_find_by_name(name, want): assert find(name).hub_id==want


def test_every_hub_id_is_found_as_itself():
    for a in presets(): assert find(a.hub_id)==a


def test_a_folder_comes_before_a_preset(tmp_path, monkeypatch):
    d = tmp_path/'meta-llama'/'Llama-2-7b-hf'
    d.mkdir(parents=True)
    config = dict(model_type='llama', hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=10)
    (d/'config.json').write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    a = find('meta-llama/Llama-2-7b-hf')
    assert a.hidden_size==64 and a.num_key_value_heads==2 and a.name=='Llama-2-7b-hf'
    (d/'config.json').write_text('{"model_type": ')
    with pytest.raises(QLoRAError, match='is not JSON'): find('meta-llama/Llama-2-7b-hf')
    (d/'config.json').unlink()
    with pytest.raises(QLoRAError, match='no config.json in'): find('./meta-llama/Llama-2-7b-hf')


@pytest.mark.parametrize('change,say', [(dict(hidden_size=None), 'has no hidden_size'), (dict(model_type='wav2vec2'), "'wav2vec2' model, of which transformers makes no language model here"),
    (dict(model_type='qwen'), "is a 'qwen' model, which the installed transformers .* does not know: a newer one may$"),
    (dict(model_type='opt', ffn_dim=64, word_embed_proj_dim=32), 'layout of OPT-350m'), (dict(model_type='phi', qk_layernorm=True), 'qk_layernorm'), (dict(num_hidden_layers='32'), "num_hidden_layers of m must be a positive integer, got '32'"),
    (dict(num_attention_heads=3), 'not a multiple'), (dict(vocab_size=0), 'vocab_size of m must be a positive integer, got 0'), (dict(model_type=None), 'is a None model')])
def test_bad_configs_are_one_line(change, say):
    good = dict(model_type='llama', hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=10)
    with pytest.raises(QLoRAError, match=say) as e: from_config({**good, **change}, 'm')
    assert '\n' not in str(e.value)


def hub_says(monkeypatch, error):
    import huggingface_hub
    def boom(*args, **kw): raise error
    monkeypatch.setattr(huggingface_hub, 'get_hf_file_metadata', boom)
    with pytest.raises(QLoRAError) as e: find('meta-llama/Llama-2-7b')
    assert '\n' not in str(e.value) and "Did you mean 'meta-llama/Llama-2-7b-hf'?" in str(e.value)
    return str(e.value)


def test_the_hub_refuses_in_one_line(monkeypatch):
    from huggingface_hub import errors
    from requests import Response
    def of(cls): return cls('long story', response=Response()) if 'Repo' in cls.__name__ or 'Remote' in cls.__name__ else cls('long story')
    assert 'is gated' in hub_says(monkeypatch, of(errors.GatedRepoError))
    assert 'the hub has no model' in hub_says(monkeypatch, of(errors.RepositoryNotFoundError))
    assert 'has no config.json on the hub' in hub_says(monkeypatch, of(errors.RemoteEntryNotFoundError))
    assert 'hub cannot be reached. It is not a preset either' in hub_says(monkeypatch, ConnectionError('no route'))
    assert 'cannot be loaded: disk full' in hub_says(monkeypatch, OSError('disk full'))
    with pytest.raises(QLoRAError, match="'two words' cannot be loaded: it is neither a folder with a config.json nor a hub id such as"): find('two words')


def test_the_hub_answers(monkeypatch, tmp_path):
    import huggingface_hub
    f = tmp_path/'c.json'
    f.write_text(json.dumps(dict(model_type='llama', hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=10)))
    monkeypatch.setattr(huggingface_hub, 'get_hf_file_metadata', lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda *a, **k: str(f))
    a = find('someone/else')
    assert a.hub_id==a.name=='someone/else' and a.vocab_size==10 and a.source.endswith('someone/else/blob/main/config.json')
    def offline(*args, **kw): raise OSError('no route')
    monkeypatch.setattr(huggingface_hub, 'get_hf_file_metadata', offline)
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda *a, **k: str(f))
    assert find('someone/else')==find('someone/else', offline=True)==a


def test_offline_does_not_ask(monkeypatch):
    import huggingface_hub
    def asked(*args, **kw): raise AssertionError('the hub was asked')
    monkeypatch.setattr(huggingface_hub, 'get_hf_file_metadata', asked)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', asked)
    with pytest.raises(QLoRAError, match='the hub was not asked. It is not a preset either'): find('someone/unknown', offline=True)


def test_presets_need_nothing_heavy():
    code = "import sys; from qlora_nb.facts.models import find; find('Llama-2-7B'); print([m for m in ('torch', 'transformers', 'huggingface_hub', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'


def test_shown_in_both_forms():
    a = find('Llama-2-7B')
    assert '6,738,415,616' in str(a) and '6,738,415,616' in a._repr_html_() and '4096 × 11008' in str(a)
