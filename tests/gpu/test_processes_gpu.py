"""Joining the other processes on a GPU says nothing: which device is ours is told, not guessed."""

import importlib.util
import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

PROGRAM = """
import torch
from student.train.processes import joined_processes, quiet_deepspeed
with quiet_deepspeed(), joined_processes() as processes:
    torch.distributed.barrier()
    print(processes.sum(torch.ones(1, device=processes.device)).item())
"""


def test_a_barrier_warns_of_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.splitlines()[-1] == "1.0"
    assert not any(words in done.stderr for words in ("Guessing device ID", "barrier()")), done.stderr
