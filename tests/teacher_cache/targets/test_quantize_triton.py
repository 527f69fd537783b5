"""The rounding kernel on a CPU, in Triton's interpreter, which is chosen where Triton is first imported.

tests/gpu/test_quantize_gpu.py runs the same comparison on a GPU.
"""

import os
import subprocess
import sys

import pytest

from delta_common.installed import has_triton
from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")


def test_the_kernel_rounds_as_pytorch_does() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.gpu.quantize_twin", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert done.stdout == "equal\n", done.stderr
