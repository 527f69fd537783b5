"""Whether optional libraries are installed."""

import importlib.util
from functools import cache


@cache
def has_triton() -> bool:
    """Whether Triton is there, which the kernels for a GPU need."""
    return importlib.util.find_spec("triton") is not None
