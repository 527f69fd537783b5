"""The kernels that keep targets, on a CPU in Triton's interpreter, against the definitions in float64.

The interpreter is chosen where Triton is first imported, so each check has a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from delta_common.installed import has_triton
from target_checks import CHECKS

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_keep_what_the_definition_says(name: str) -> None:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(TESTS / "target_checks.py"), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
