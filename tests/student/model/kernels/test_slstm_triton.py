"""The kernels in Triton's interpreter, against xlstm's loop; on a GPU see tests/gpu/test_slstm_gpu.py."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from delta_common.installed import has_triton
from tests.helpers import ROOT
from tests.helpers.slstm_cases import Sequence

INTERPRETED = """
import json, sys, torch
from tests.helpers.slstm_cases import Sequence, worst_error
for line in sys.stdin:
    case = json.loads(line)
    print(worst_error(Sequence(**case | {"dtype": getattr(torch, case["dtype"])}), "triton"))
"""


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
def test_triton_kernels_in_its_interpreter() -> None:
    """In a process of its own: triton decides at import whether it interprets. It knows no bfloat16 products."""
    base = Sequence(batch=3, length=7, heads=2, head_dim=18, dtype=torch.float32)
    cases = [
        base,
        replace(base, starts=0.3, from_state=True),
        replace(base, starts=0.3, final_counts=False),
        replace(base, batch=17, length=2, heads=1, head_dim=8, from_state=True),
        replace(base, batch=1, length=1, from_state=True),
        replace(base, length=3, head_dim=96, starts=0.3),
        replace(base, dtype=torch.float16, starts=0.3),
    ]
    lines = [json.dumps(asdict(case) | {"dtype": str(case.dtype).removeprefix("torch.")}) for case in cases]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(
        command, input="\n".join(lines), env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == len(cases)
    assert max(errors[:-1]) < 1e-5, errors
    assert errors[-1] < 3e-3, errors
