"""The kernels that keep targets, on a CPU in Triton's interpreter, against the definitions in float64.

The interpreter is chosen where Triton is first imported, so each check has a process of its own.
tests/gpu/test_targets_gpu.py runs the same checks on a GPU.
"""

import os
import subprocess
import sys

import pytest

from delta_common.installed import has_triton
from tests.helpers import ROOT
from tests.helpers.layouts import layout
from tests.helpers.target_checks import CHECKS

pytestmark = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_keep_what_the_definition_says(name: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.helpers.target_checks", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_layouts_larger_than_a_programs_registers_are_left_to_torch() -> None:
    from teacher_cache.targets.keep_triton import MAX_SAMPLES, MAX_TOP_K, serves

    assert serves(layout(MAX_TOP_K, MAX_SAMPLES))
    assert not serves(layout(MAX_TOP_K + 1, 0))
    assert not serves(layout(1, MAX_SAMPLES + 1))
