"""The kernels in Triton's interpreter; on a GPU see tests/gpu/test_recurrence_gpu.py."""

import json
import os
import subprocess
import sys

import pytest

from delta_common.installed import has_triton
from tests.helpers import ROOT

INTERPRETED = """
import json, sys, torch
from tests.helpers.recurrence_cases import Case, worst_error
for line in sys.stdin:
    print(worst_error(Case(**json.loads(line), dtype=torch.float32)))
"""


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
def test_kernels_in_tritons_interpreter() -> None:
    """In a process of its own: triton decides at import whether it interprets."""
    base = {"rows": 2, "heads": 2, "key_heads": 1, "length": 70, "features": 32, "width": 16}
    cases = [base, base | {"length": 100, "documents": True}, base | {"documents": True, "memory": True}]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", INTERPRETED]
    lines = "\n".join(map(json.dumps, cases))
    printed = subprocess.run(command, input=lines, env=environment, capture_output=True, text=True, check=True).stdout
    errors = [float(line) for line in printed.split()]
    assert len(errors) == len(cases)
    assert max(errors) < 1e-6
