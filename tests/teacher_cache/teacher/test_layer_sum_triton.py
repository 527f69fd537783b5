"""The kernel adds states one after the other, as plain sums do; in Triton's interpreter."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def test_the_kernel_adds_in_turn() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.gpu.layer_sum_twin", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert done.stdout == "equal\n", done.stderr
