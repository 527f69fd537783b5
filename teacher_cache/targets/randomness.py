"""Random numbers that depend on the seed and the row only, whichever process computes the row: counter-based."""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.device import to_device


class Purpose(IntEnum):
    """Streams of random numbers of a row; no two share numbers."""

    SAMPLING = 0
    ROUNDING = 1
    THINNING = 2
    STATES = 3


def row_uniforms(seed: int, row: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), the same on every machine: NumPy guarantees Philox's raw output only, so use that."""
    raw = np.random.Philox(key=[seed, row], counter=[0, 0, 0, purpose]).random_raw(count)
    return np.asarray(raw >> np.uint64(11), np.float64) * 2.0**-53


def row_bytes(seed: int, row: int, purpose: Purpose, count: int) -> NDArray[np.uint8]:
    """`count` random bytes: those of the raw numbers of `row_uniforms`, the lowest first."""
    raw = np.random.Philox(key=[seed, row], counter=[0, 0, 0, purpose]).random_raw(-(-count // 8))
    return np.asarray(raw, "<u8").view(np.uint8)[:count]


def rounding_keys(seed: int, rows: Iterable[int], device: torch.device) -> Tensor:
    """The keys (rows,) int64 that `rounding_uniforms` takes."""
    keys = [int(np.random.Philox(key=[seed, row], counter=[0, 0, 0, Purpose.ROUNDING]).random_raw()) for row in rows]
    return to_device(torch.tensor([_signed(key) for key in keys]), device)


def rounding_uniforms(keys: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1), (rows, count) float32, the same on every device: 16 bits each of a row's SplitMix64 stream.

    Rounding needs one number per channel, a thousand times as many as sampling. `row_uniforms`, or copying them to a
    GPU, would take longer than the teacher's forward pass.
    """
    words = torch.arange(1, -(-count // 4) + 1, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    mixed = keys[:, None] + words
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed.bitwise_xor_(_shifted_right(mixed, shift)).mul_(_signed(factor))
    mixed.bitwise_xor_(_shifted_right(mixed, 31)).bitwise_xor_(_signed(0x8000800080008000))
    less_a_half = mixed.view(torch.int16)[:, :count]  # of 2^16, so that 16 bits are a signed number
    return less_a_half.float().add_(0.5 + 2**15).mul_(2.0**-16)


def _signed(word: int) -> int:
    """A 64-bit word as a signed int64; PyTorch's sums and products wrap around."""
    return word - 2**64 if word >= 2**63 else word


def _shifted_right(words: Tensor, places: int) -> Tensor:
    return (words >> places).bitwise_and_((1 << (64 - places)) - 1)
