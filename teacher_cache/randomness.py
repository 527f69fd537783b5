"""Random numbers that belong to a row and not to whoever computes it: counter-based, keyed by (seed, row)."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """Streams of a row that must not share numbers."""

    SAMPLING = 0
    ROUNDING = 1
    THINNING = 2


def row_uniforms(seed: int, row: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), the same on every machine: NumPy fixes Philox's raw output, not its distributions."""
    raw = np.random.Philox(key=[seed, row], counter=[0, 0, 0, purpose]).random_raw(count)
    return np.asarray(raw >> np.uint64(11), np.float64) * 2.0**-53
