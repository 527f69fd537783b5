"""A program in a process of its own."""

import os
import subprocess
import sys

from tests.helpers import ROOT


def python(program: str, *arguments: str, **environment: str) -> str:
    """What a Python program prints, on one thread; it has to end well."""
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
