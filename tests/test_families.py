"A family against its class: every tensor and every parameter, and which layers are alike"
import sys
from dataclasses import replace

import pytest
from conftest import root
from test_models import meta_model
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.models import from_config
from qlora_nb.facts.skeleton import read
from qlora_nb.planning.planner import plan
from qlora_nb.simulation.job import detect, make_job
from qlora_nb.simulation.trace import _prefixes, trace

sys.path.insert(0, str(root/'benchmarks'))
from families import GEMMA4, LLAMA4, TINY

def arch(config, **changes): return from_config(config | changes, config['model_type'])

@pytest.mark.parametrize('name', TINY)
def test_a_family_describes_what_its_class_has(name):
    "Each linear layer and each other tensor, with its group and what may be quantised; and as many parameters as the empty model"
    ours,theirs = from_config(TINY[name], name),read(TINY[name], name)
    assert ours.formula and not theirs.formula
    assert {replace(l, bias=False) for l in ours.linears}==set(theirs.linears)
    assert set(ours.tensors)=={replace(t, name=t.name.removeprefix('lm_head.')) for t in theirs.tensors}
    assert (ours.eager, ours.tie_word_embeddings, ours.head_dim)==(theirs.eager, theirs.tie_word_embeddings, theirs.head_dim)
    assert ours.num_parameters==sum(p.numel() for p in meta_model(ours).parameters()) and ours.active_parameters==theirs.active_parameters

TYPES = ['sliding_attention', 'full_attention']*5
MANY = [(GEMMA4 | dict(layer_types=TYPES), 10, (4, 6)), (TINY['deepseek_v3'], 8, (3, 4)), pytest.param(LLAMA4, 10, (4, 6), marks=pytest.mark.slow)]
@pytest.mark.parametrize('config,layers,run', MANY, ids=lambda o: o.get('model_type') if isinstance(o, dict) else '')
def test_a_pattern_of_layers_stands_for_all(config, layers, run):
    a = arch(config, num_hidden_layers=layers)
    assert _prefixes(a)[1]==run
    j = make_job(a, batch=2, length=64, stack=detect('cuda', 'bfloat16'))
    two,whole = trace(j),trace(j, 'all')
    assert two.layers==run[1] and whole.layers==layers and two.tensors==pytest.approx(whole.tensors, rel=.001)

def test_layers_that_differ_are_counted_by_kind():
    a = arch(TINY['qwen3_moe'], decoder_sparse_step=2, mlp_only_layers=[1])
    assert a.order==(0, 0, 0, 1) and [k.num_hidden_layers for k in a.kinds]==[3, 1] and len(plan(a, gpu='T4').options)==3
    assert arch(TINY['qwen3_moe'], mlp_only_layers=[0, 1, 2, 3]).kinds==()

OWN_INPUTS = GEMMA4 | dict(hidden_size_per_layer_input=32, vocab_size_per_layer_input=512)
@pytest.mark.parametrize('config', [OWN_INPUTS, OWN_INPUTS | dict(num_kv_shared_layers=2, use_double_wide_mlp=True)], ids=['own inputs', 'shared keys'])
def test_what_a_family_does_not_count_is_traced(config):
    a = arch(config)
    assert not a.formula and a.num_parameters==sum(p.numel() for p in meta_model(a).parameters())
    assert plan(a, gpu='T4').notes[0].startswith('Traced, no formula')

@pytest.mark.parametrize('lacking', ['num_experts_per_tok', 'intermediate_size', 'vocab_size'])
def test_a_family_names_what_a_config_lacks(lacking):
    config = {k: v for k,v in TINY['deepseek_v2'].items() if k!=lacking}
    with pytest.raises(QLoRAError, match=f'the config of x has no {lacking}'): from_config(config, 'x')
