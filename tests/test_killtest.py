"The kill test, with three kills; the benchmark makes twenty"
import subprocess, sys
import pytest
from conftest import root

@pytest.mark.slow
def test_three_kills_change_nothing():
    o = subprocess.run([sys.executable, root/'benchmarks'/'killtest.py', '--kills', '3', '--seed', '7'], capture_output=True, text=True, timeout=1500)
    assert not o.returncode and '3 kills in 2 runs: 2 runs equal to the undisturbed one, in folder and mirror; 0 not' in o.stdout, o.stdout+o.stderr[-2000:]
