"The peak of a step by the formula of a family, against the trace of the real code"
import sys

import pytest
from conftest import root
from qlora_nb.facts.models import from_config
from qlora_nb.planning.estimate import estimate
from qlora_nb.simulation.job import detect, make_job
from qlora_nb.simulation.trace import trace

sys.path.insert(0, str(root/'benchmarks'))
from families import TINY

def job(name, batch, length, **changes):
    return make_job(from_config(TINY[name], name), batch=batch, length=length, stack=detect('cuda', 'bfloat16'), **changes)

def agrees(j, limit): return estimate(j).tensors==pytest.approx(trace(j).tensors, rel=limit)

@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('batch,length', [(1, 512), (4, 256), (2, 1024)])
def test_the_formula_of_a_family_is_its_trace(name, batch, length): assert agrees(job(name, batch, length), .005)

@pytest.mark.parametrize('name', ['glm4', 'gpt_oss', 'qwen3_moe, every second layer dense', 'gemma4_text, experts', 'llama4_text', 'deepseek_v2', 'deepseek_v3'])
def test_nor_is_it_another_without_checkpoints(name): assert agrees(job(name, 2, 512, checkpointing=False), .005)

@pytest.mark.slow
@pytest.mark.parametrize('changes', [dict(method='full', optim='adamw_torch'), dict(stored='bfloat16'), dict(attention='eager', checkpointing=False)], ids=str)
@pytest.mark.parametrize('name', ['gemma4_text, keys as values', 'deepseek_v3'])
def test_nor_with_other_methods(name, changes): assert agrees(job(name, 2, 512, **changes), .01)
