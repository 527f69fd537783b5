"""Hidden states at 8 and 4 bits: codes and one float16 scale for each group of 64 channels."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from delta_common.installed import has_triton
from teacher_cache.format.arrays import SCALE_GROUP
from teacher_cache.targets.randomness import rounding_uniforms

Precision = Literal["int8", "int4"]

LARGEST_CODE = {"int8": 127, "int4": 7}

ROOM = 1 + 2.0**-10
"""Scales are made this much larger, so that rounding them to float16 never makes the largest channel overflow."""


def quantize_rows(states: Tensor, counted: Tensor, precision: Precision, keys: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize` of rows' states (B, T, d) with the rounding numbers of keys (B,); 0 where counted (B, T) is false."""
    if states.is_cuda and has_triton():
        from teacher_cache.targets import quantize_triton

        largest = LARGEST_CODE[precision]
        return quantize_triton.quantize_rows(states.float(), counted, keys, largest, ROOM / largest)
    uniform = rounding_uniforms(keys, states[0].numel()).view(states.shape)
    return quantize(torch.where(counted[..., None], states, 0.0), precision, uniform)


def quantize(states: Tensor, precision: Precision, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """States (..., d) float32 → codes (..., d) int8 and scales (..., groups) float16.

    With uniform (..., d) in [0, 1) rounding is stochastic: the state's expectation is kept, and so is that of a
    squared error's gradient. Without it codes are the nearest.
    """
    groups = _grouped(states)
    largest = groups.abs().amax(-1) * (ROOM / LARGEST_CODE[precision])
    scales = largest.clamp(max=torch.finfo(torch.float16).max).half()
    scaled = groups / scales.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    offset = 0.5 if uniform is None else _grouped(uniform.float())
    codes = (scaled + offset).floor().clamp_(-LARGEST_CODE[precision], LARGEST_CODE[precision])
    codes = torch.where(scales[..., None] > 0, codes, 0.0)
    return codes.flatten(-2)[..., : states.shape[-1]].to(torch.int8), scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Codes (..., d) int8 and scales (..., groups) float16 → states (..., d) float32."""
    widened = scales.float().repeat_interleave(SCALE_GROUP, dim=-1)[..., : codes.shape[-1]]
    return codes.float() * widened


def pack_int4(codes: Tensor) -> Tensor:
    """Codes (..., d) in -7 .. 7 → (..., ceil(d/2)) uint8: the even channel in the low half, each plus 8."""
    shifted = (functional.pad(codes, (0, codes.shape[-1] % 2)) + 8).to(torch.uint8)
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def unpack_int4(packed: Tensor, width: int) -> Tensor:
    """The codes (..., width) int8 of `pack_int4`."""
    halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return halves[..., :width].to(torch.int8) - 8


def _grouped(states: Tensor) -> Tensor:
    padded = functional.pad(states, (0, -states.shape[-1] % SCALE_GROUP))
    return padded.view(*padded.shape[:-1], -1, SCALE_GROUP)
