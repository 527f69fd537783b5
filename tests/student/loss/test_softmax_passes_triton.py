"""The kernels against their twin, in the interpreter here and on a GPU in tests/gpu/test_loss_gpu.py."""

import pytest

from tests.helpers import ROOT
from tests.helpers.programs import python

TRITON_TWIN = ROOT / "tests" / "gpu" / "triton_twin.py"


def test_triton_kernels_equal_their_twin_when_interpreted() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert python(TRITON_TWIN.read_text(), "cpu", TRITON_INTERPRET="1").endswith("compared\n")
