"""Random numbers that belong to a row and not to whoever computes it: counter-based, keyed by (seed, row)."""

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.device import to_device


class Purpose(IntEnum):
    """Streams of a row that must not share numbers."""

    SAMPLING = 0
    ROUNDING = 1
    THINNING = 2


def row_uniforms(seed: int, row: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), the same on every machine: NumPy fixes Philox's raw output, not its distributions."""
    raw = np.random.Philox(key=[seed, row], counter=[0, 0, 0, purpose]).random_raw(count)
    return np.asarray(raw >> np.uint64(11), np.float64) * 2.0**-53


def rounding_keys(seed: int, rows: range, device: torch.device) -> Tensor:
    """What rows' rounding numbers are drawn from: (rows,) int64."""
    keys = [int(np.random.Philox(key=[seed, row], counter=[0, 0, 0, Purpose.ROUNDING]).random_raw()) for row in rows]
    return to_device(torch.tensor([_signed(key) for key in keys]), device)


def rounding_uniforms(keys: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1), float32 (rows, count), the same on every device: 16 bits each of a row's SplitMix64 stream.

    Rounding needs one a channel, a thousand times as many as sampling: `row_uniforms` would take longer than a GPU
    needs for its teacher, and so would bringing them there.
    """
    words = torch.arange(1, -(-count // 4) + 1, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    mixed = keys[:, None] + words
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed.bitwise_xor_(_shifted_right(mixed, shift)).mul_(_signed(factor))
    mixed.bitwise_xor_(_shifted_right(mixed, 31))
    quarters = mixed.view(torch.int16)[:, :count]
    return quarters.int().bitwise_and_(0xFFFF).float().add_(0.5).mul_(2.0**-16)


def _signed(word: int) -> int:
    """A 64-bit word as PyTorch's int64, whose sums and products wrap around, holds it."""
    return word - 2**64 if word >= 2**63 else word


def _shifted_right(words: Tensor, places: int) -> Tensor:
    return (words >> places).bitwise_and_((1 << (64 - places)) - 1)
