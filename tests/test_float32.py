"The way of a CPU without bfloat16, taken on one that has it: what depends on the compute dtype, a second time"
import os, re, subprocess, sys
import pytest, tiny
from conftest import root
from qlora_nb import train
from qlora_nb.facts.hardware import CPU_DTYPE, precision
from qlora_nb.facts.machine import cpu

# Whole files, or one test of a file; a name that is gone fails the lane
AFFECTED = '''
float32::test_a_run_computes_in_the_dtype_of_its_cpu
trainer
measure
magics::test_the_whole_way
resume::test_stopped_and_resumed_is_never_stopped
resume::test_from_the_folder_alone
resume::test_optimizers_of_bitsandbytes_go_on_exactly
resume::test_a_trial_of_the_longest_batch_leaves_no_trace
resume::test_answers_on_the_way_leave_no_trace
resume::test_a_changed_rate_is_applied_and_said
resume::test_another_split_of_the_same_rows_is_applied
resume::test_stopped_in_a_validation
resume::test_sigterm_saves_and_is_passed_on
resume::test_killed_in_the_middle
guardian::test_memory_that_is_not_enough_is_met_with_smaller_micro_batches
guardian::test_the_best_adapter_is_kept_and_training_ends_early
kernel::test_the_saved_notebook_holds_a_report_and_no_widget
kernel::test_the_stop_button_of_the_kernel_finishes_the_step
kernel::test_a_fresh_kernel_goes_on_from_the_folder
'''.split()
# The libraries that choose their kernels by the CPU are kept to AVX2, as near to an older CPU as a newer one can be
OLDER = {CPU_DTYPE: 'float32', 'ATEN_CPU_CAPABILITY': 'avx2', 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'MKL_ENABLE_INSTRUCTIONS': 'AVX2'}

def affected():
    "The tests of the second lane as pytest is given them"
    for name in AFFECTED:
        file,_,test = name.partition('::')
        yield f'tests/test_{file}.py'+(f'::{test}' if test else '')

def test_a_run_computes_in_the_dtype_of_its_cpu(tmp_path):
    model = tiny.model_folder(tmp_path/'tiny')
    run = train(f'model: {model}\ndata: {{train: rows}}\ntraining: {{max_steps: 1}}\noutput: {{output_dir: {tmp_path}}}', dict(rows=tiny.rows()))
    assert run.precision.compute==('bfloat16' if cpu().bf16 else 'float32') and not (cpu().bf16 and os.environ.get(CPU_DTYPE))

@pytest.mark.slow
def test_what_depends_on_the_compute_dtype_passes_in_float32():
    if not cpu().bf16: pytest.skip(f'{precision(cpu()).why}: every test runs in float32 anyway, and a lane in bfloat16 is not possible here')
    env = {name: value for name,value in os.environ.items() if not name.startswith('PYTEST_')}
    command = [sys.executable, '-m', 'pytest', '-p', 'no:xdist', '-p', 'no:cacheprovider', '--durations=10', *affected()]
    out = subprocess.run(command, cwd=root, env=env|OLDER, capture_output=True, text=True, timeout=1500)
    passed = re.search(r'(\d+) passed', out.stdout)
    assert not out.returncode and int(passed[1])>=60, out.stdout[-20_000:]+out.stderr[-2000:]
