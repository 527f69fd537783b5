"""Whether optional libraries are installed."""

import importlib.util
from functools import cache


@cache
def has_triton() -> bool:
    """Whether Triton, which the GPU kernels need, is installed."""
    return importlib.util.find_spec("triton") is not None
