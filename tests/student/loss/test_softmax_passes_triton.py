"""The kernels against their twin, in the interpreter here and on a GPU in tests/gpu/test_loss_gpu.py."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

TRITON_TWIN = ROOT / "tests" / "gpu" / "triton_twin.py"


def test_triton_kernels_equal_their_twin_when_interpreted() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert python(TRITON_TWIN.read_text(), "cpu", TRITON_INTERPRET="1").endswith("compared\n")


def python(program: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
