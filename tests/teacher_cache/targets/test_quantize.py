import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.targets.quantize import LARGEST_CODE, Precision, dequantize, pack_int4, quantize, unpack_int4
from teacher_cache.targets.randomness import Purpose, rounding_keys, rounding_uniforms, row_uniforms
from tests.helpers import ROOT

CPU = torch.device("cpu")


@given(st.integers(1, 200), st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 1e3]))
@settings(max_examples=40, deadline=None)
def test_every_channel_is_within_one_step_and_nothing_is_clipped(width: int, seed: int, size: float) -> None:
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(3, width, generator=random) * size
    states[:, 0] *= 100
    for precision in ("int8", "int4"):
        codes, scales = quantize(states, precision, torch.rand(3, width, generator=random))
        steps = scales.float().repeat_interleave(64, dim=-1)[:, :width]
        resolved = steps > 6e-8 * LARGEST_CODE[precision]
        off = (dequantize(codes, scales) - states).abs()
        assert (off <= steps * 1.001)[resolved].all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_stochastic_rounding_keeps_the_expectation(precision: Precision) -> None:
    """Mean over 4,000 roundings of 64 channels: |z| < 4.5, false alarm 0.05 %."""
    draws = 4_000
    states = torch.randn(1, 64, generator=torch.Generator().manual_seed(2)).expand(draws, -1)
    uniform = torch.rand(draws, 64, generator=torch.Generator().manual_seed(3))
    restored = dequantize(*quantize(states, precision, uniform)).double()
    z = (restored.mean(0) - states[0]) / (restored.std(0).clamp(min=1e-9) / draws**0.5)
    assert z.abs().max() < 4.5


@given(st.integers(1, 130), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_four_bit_codes_survive_packing(width: int, seed: int) -> None:
    codes = torch.randint(-7, 8, (2, width), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack_int4(codes)
    assert packed.shape == (2, (width + 1) // 2)
    assert torch.equal(unpack_int4(packed, width), codes)


def test_zeros_stay_zeros() -> None:
    codes, scales = quantize(torch.zeros(2, 100), "int8", torch.full((2, 100), 0.999))
    assert not codes.any()
    assert not scales.any()


def test_a_rows_numbers_are_its_own_and_fixed_for_ever() -> None:
    golden = [0.7988550069253694, 0.6724404163032933, 0.7301933938270706]
    assert row_uniforms(1, 5, Purpose.SAMPLING, 3).tolist() == golden
    first = row_uniforms(1, 5, Purpose.SAMPLING, 100)
    assert first[:50].tolist() == row_uniforms(1, 5, Purpose.SAMPLING, 50).tolist()
    others = [row_uniforms(2, 5, Purpose.SAMPLING, 100), row_uniforms(1, 6, Purpose.SAMPLING, 100)]
    others.append(row_uniforms(1, 5, Purpose.ROUNDING, 100))
    assert all(not (first == other).any() for other in others)
    assert 0 <= first.min() < first.max() < 1


def splitmix64(seed: int, words: int) -> list[int]:
    """The generator as its authors write it (Steele, Lea and Flood 2014)."""
    state, drawn = seed, []
    for _ in range(words):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        word = state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
        drawn.append(word ^ (word >> 31))
    return drawn


@pytest.mark.parametrize("count", [1, 4, 103])
def test_rounding_takes_16_bits_each_of_a_rows_splitmix64(count: int) -> None:
    found = rounding_uniforms(rounding_keys(7, range(3, 6), CPU), count)
    assert found.shape == (3, count)
    for row, numbers in zip(range(3, 6), found, strict=True):
        seed = int(np.random.Philox(key=[7, row], counter=[0, 0, 0, Purpose.ROUNDING]).random_raw())
        quarters = [word >> (16 * part) & 0xFFFF for word in splitmix64(seed, -(-count // 4)) for part in range(4)]
        assert numbers.tolist() == [(quarter + 0.5) / 2**16 for quarter in quarters[:count]]


def test_rounding_numbers_are_uniform_and_rows_have_their_own() -> None:
    """A chi-square over 256 bins of 400,000 numbers within 4.5 standard deviations; rows correlate within 4.5 too."""
    numbers = rounding_uniforms(rounding_keys(0, range(4), CPU), 100_000).double()
    assert 0 < numbers.min() < numbers.max() < 1
    counts = torch.histc(numbers, 256, 0, 1)
    chi_square = ((counts - counts.mean()).square() / counts.mean()).sum()
    assert abs(chi_square - 255) < 4.5 * 510**0.5
    correlations = torch.corrcoef(numbers) - torch.eye(4)
    assert correlations.abs().max() < 4.5 * 100_000**-0.5


def test_the_kernel_rounds_as_pytorch_does() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.gpu.quantize_twin", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert done.stdout == "equal\n", done.stderr
