"""Hidden states in 8, 4 or 2 bits: integer codes, and one float16 scale per group of 64 channels.

Rounding adds a random number to each value, which the reader knows too and takes off again. The error is then uniform
over one step whatever the value was: without bias, half as large as that of the codes alone, and of known variance.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from delta_common.installed import has_triton
from teacher_cache.format.arrays import CODES_PER_BYTE, SCALE_GROUP
from teacher_cache.targets.randomness import rounding_uniforms

Precision = Literal["int8", "int4", "int2"]

LARGEST_CODE: dict[Precision, int] = {"int8": 127, "int4": 7, "int2": 1}

ROOM = 1 + 2.0**-10
"""Scales are enlarged by this factor, so that rounding them to float16 never makes the largest code overflow."""


def quantize_rows(states: Tensor, counted: Tensor, precision: Precision, keys: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize` states (B, T, d), rounding with the random numbers of keys (B,); 0 where counted (B, T) is false."""
    if states.is_cuda and has_triton():
        from teacher_cache.targets import quantize_triton

        largest = LARGEST_CODE[precision]
        return quantize_triton.quantize_rows(states.float(), counted, keys, largest, ROOM / largest)
    uniform = rounding_uniforms(keys, states[0].numel()).view(states.shape)
    return quantize(torch.where(counted[..., None], states, 0.0), precision, uniform)


def quantize(states: Tensor, precision: Precision, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """Turn states (..., d) float32 into codes (..., d) int8 and scales (..., groups) float16.

    With uniform (..., d) in [0, 1), rounding is stochastic and unbiased, so the gradient of a squared error is unbiased
    too. Without it, states are rounded to the nearest code.
    """
    groups = _grouped(states)
    largest = groups.abs().amax(-1) * (ROOM / LARGEST_CODE[precision])
    scales = largest.clamp(max=torch.finfo(torch.float16).max).half()
    scaled = groups / scales.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    offset = 0.5 if uniform is None else _grouped(uniform.float())
    codes = (scaled + offset).floor().clamp_(-LARGEST_CODE[precision], LARGEST_CODE[precision])
    codes = torch.where(scales[..., None] > 0, codes, 0.0)
    return codes.flatten(-2)[..., : states.shape[-1]].to(torch.int8), scales


def dequantize(codes: Tensor, scales: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Turn codes (..., d) int8 and scales (..., groups) float16 back into states (..., d) float32.

    With the `uniform` (..., d) that they were rounded with, the error is uniform over one scale.
    """
    return in_steps(codes, uniform).mul_(of_channels(scales, codes.shape[-1]))


def in_steps(codes: Tensor, uniform: Tensor | None) -> Tensor:
    """What `dequantize` multiplies by the scales: codes (..., d), less the `uniform` they were rounded with."""
    return codes.float() if uniform is None else codes.float().add_(0.5).sub_(uniform)


def of_channels(scales: Tensor, width: int) -> Tensor:
    """The scale (..., width) float32 of each channel, from those of groups (..., groups)."""
    every: Tensor = scales.float()[..., None].expand(*scales.shape, SCALE_GROUP).flatten(-2)[..., :width]
    return every


def pack(codes: Tensor, precision: Precision) -> Tensor:
    """Codes (..., d) as they are stored: int8, or (..., ceil(d / n)) uint8 with n in a byte, the first in the low bits.

    What fills up the last byte, and is added to each code, is the middle one: 8 in 4 bits, 2 in 2 bits.
    """
    per_byte = CODES_PER_BYTE[precision]
    if per_byte == 1:
        return codes
    bits = 8 // per_byte
    shifted = (functional.pad(codes, (0, -codes.shape[-1] % per_byte)) + 2 ** (bits - 1)).to(torch.uint8)
    parts = shifted.unflatten(-1, (-1, per_byte)) << bits * torch.arange(per_byte, device=codes.device)
    packed: Tensor = parts.sum(-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, precision: Precision, width: int) -> Tensor:
    """The codes (..., width) int8 of `pack`."""
    per_byte = CODES_PER_BYTE[precision]
    if per_byte == 1:
        return packed
    found = _codes_of_bytes(per_byte, packed.device).index_select(0, packed.flatten().int())
    codes: Tensor = found.view(torch.int8).view(*packed.shape[:-1], -1)[..., :width]
    return codes


@lru_cache(maxsize=16)
def _codes_of_bytes(per_byte: int, device: torch.device) -> Tensor:
    """For each byte (256,) the codes in it, as one whole number of so many bytes: a table takes a third of shifting."""
    bits = 8 // per_byte
    parts = (torch.arange(256)[:, None] >> bits * torch.arange(per_byte)) & (2**bits - 1)
    codes: Tensor = (parts - 2 ** (bits - 1)).to(torch.int8)
    return codes.view({2: torch.int16, 4: torch.int32}[per_byte]).flatten().to(device)


def _grouped(states: Tensor) -> Tensor:
    padded = functional.pad(states, (0, -states.shape[-1] % SCALE_GROUP))
    return padded.view(*padded.shape[:-1], -1, SCALE_GROUP)
