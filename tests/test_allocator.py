"The trace of a step against a real one on this CPU: the peak of its tensors"
import sys, warnings

import pytest
from conftest import root
from qlora_nb.quiet import quiet
from qlora_nb.simulation.trace import trace

sys.path.insert(0, str(root/'benchmarks'))
import cpu_memory
from families import TINY

SLOW = ('glm', 'gemma4_text', 'qwen3_moe, every second layer dense', 'llama4_text, every second layer dense', 'deepseek_v2, queries made directly', 'deepseek_v3, halves rotated')
def marked(name): return pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name

@pytest.mark.parametrize('name', map(marked, TINY))
def test_a_traced_step_needs_what_a_real_one_does(name, tmp_path):
    "By `%qlora_train`'s trainer, with half of the tokens trained"
    job = cpu_memory.family_job(name)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        real,_ = cpu_memory.real(job, str(tmp_path))
    traced = max(size for phase,size in trace(job, layers='all').phases.items() if phase!='load')
    assert traced==pytest.approx(real, rel=.01)
