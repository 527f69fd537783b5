"""Hidden states in 8 or 4 bits: integer codes, and one float16 scale per group of 64 channels."""

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


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Turn codes (..., d) int8 and scales (..., groups) float16 back into states (..., d) float32."""
    widened = scales.float().repeat_interleave(SCALE_GROUP, dim=-1)[..., : codes.shape[-1]]
    return codes.float() * widened


def pack_int4(codes: Tensor) -> Tensor:
    """Pack codes (..., d) from -7 to 7 into (..., ceil(d/2)) uint8: code + 8, the even channel in the low 4 bits."""
    shifted = (functional.pad(codes, (0, codes.shape[-1] % 2)) + 8).to(torch.uint8)
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def unpack_int4(packed: Tensor, width: int) -> Tensor:
    """The codes (..., width) int8 of `pack_int4`."""
    halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return halves[..., :width].to(torch.int8) - 8


def _grouped(states: Tensor) -> Tensor:
    padded = functional.pad(states, (0, -states.shape[-1] % SCALE_GROUP))
    return padded.view(*padded.shape[:-1], -1, SCALE_GROUP)
