# Kernels are Triton's language: their arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""`quantize.quantize_rows` on a GPU in one pass over the states; PyTorch takes two dozen, with the same bits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from teacher_cache.format.arrays import SCALE_GROUP

TILE = 32
"""Groups of channels per program."""

GROUP = tl.constexpr(SCALE_GROUP)
LARGEST_HALF = tl.constexpr(65504.0)
SMALLEST_NORMAL = tl.constexpr(2.0**-126)
STEP = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9 - 2**64)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB - 2**64)


def quantize_rows(
    states: Tensor, counted: Tensor, keys: Tensor, largest_code: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Codes (B, T, d) int8 and scales (B, T, groups) float16 of states (B, T, d) float32.

    counted (B, T) bool: other positions become 0; keys (B,) int64; a scale is `factor` times the group's largest.
    """
    rows, length, width = states.shape
    groups = triton.cdiv(width, SCALE_GROUP)
    codes = torch.empty(states.shape, dtype=torch.int8, device=states.device)
    scales = torch.empty(rows, length, groups, dtype=torch.float16, device=states.device)
    total = scales.numel()
    with torch.cuda.device_of(states):
        _quantize[(triton.cdiv(total, TILE),)](
            states.contiguous(), counted.contiguous().view(torch.uint8), keys, codes, scales,
            total, length, width, groups,
            largest_code=largest_code, factor=factor, tile=TILE, num_warps=4,
        )  # fmt: skip
    return codes, scales


@triton.jit
def _mixed(word):
    """SplitMix64's output function."""
    word = (word ^ ((word >> 30) & (2**34 - 1))) * FIRST_FACTOR
    word = (word ^ ((word >> 27) & (2**37 - 1))) * SECOND_FACTOR
    return word ^ ((word >> 31) & (2**33 - 1))


@triton.jit
def _quantize(
    states, counted, keys, codes, scales, total, length, width, groups,
    largest_code: tl.constexpr, factor: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Quantize `tile` groups of channels; groups are numbered through channels, positions and rows."""
    group = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    there = group < total
    position = group // groups
    channel = (group % groups)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = there[:, None] & (channel < width)
    places = position[:, None] * width + channel
    counts = tl.load(counted + position, mask=there, other=0) != 0
    state = tl.load(states + places, mask=inside & counts[:, None], other=0.0)

    scale = tl.minimum(tl.max(tl.abs(state), axis=1) * factor, LARGEST_HALF).to(tl.float16)
    broken = tl.max((state != state).to(tl.int32), axis=1) > 0
    scale = tl.where(broken, float("nan"), scale).to(tl.float16)
    tl.store(scales + group, scale, mask=there)

    number = (position % length)[:, None] * width + channel
    key = tl.load(keys + position // length, mask=there, other=0)
    word = _mixed(key[:, None] + (number // 4 + 1) * STEP)
    uniform = (((word >> (number % 4 * 16)) & 0xFFFF).to(tl.float32) + 0.5) * 2.0**-16

    step = scale.to(tl.float32)[:, None]
    code = tl.floor(tl.div_rn(state, tl.maximum(step, SMALLEST_NORMAL)) + uniform)
    code = tl.minimum(tl.maximum(code, -largest_code), largest_code)
    tl.store(codes + places, tl.where(step > 0.0, code, 0.0).to(tl.int8), mask=inside)
