import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.targets.quantize import (
    LARGEST_CODE,
    Precision,
    dequantize,
    pack,
    quantize,
    quantize_rows,
    unpack,
)
from teacher_cache.targets.randomness import rounding_keys, rounding_uniforms


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
    packed = pack(codes, "int4")
    assert packed.shape == (2, (width + 1) // 2)
    assert torch.equal(unpack(packed, "int4", width), codes)


def test_zeros_stay_zeros() -> None:
    codes, scales = quantize(torch.zeros(2, 100), "int8", torch.full((2, 100), 0.999))
    assert not codes.any()
    assert not scales.any()


def test_the_nearest_code_without_random_numbers() -> None:
    states = torch.randn(4, 64, generator=torch.Generator().manual_seed(6))
    codes, scales = quantize(states, "int8", None)
    off = (dequantize(codes, scales) - states).abs()
    assert (off <= scales.float() * 0.5001).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rows_are_rounded_with_their_own_numbers_and_uncounted_positions_are_zero(precision: Precision) -> None:
    states = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(8))
    counted = torch.ones(3, 5, dtype=torch.bool)
    counted[1, 2] = counted[2, 4] = False
    states[1, 2] = torch.nan
    keys = rounding_keys(3, range(10, 13), torch.device("cpu"))
    codes, scales = quantize_rows(states, counted, precision, keys)
    assert not codes[~counted].any()
    assert not scales[~counted].any()
    alone = quantize_rows(states[2:], counted[2:], precision, keys[2:])
    assert torch.equal(alone[0], codes[2:])
    assert torch.equal(alone[1], scales[2:])
    uniform = rounding_uniforms(keys[:1], 5 * 70).view(1, 5, 70)
    assert torch.equal(quantize(states[:1], precision, uniform)[0], codes[:1])


def test_packing_puts_the_even_channel_in_the_low_half() -> None:
    assert pack(torch.tensor([-7, 7, 0], dtype=torch.int8), "int4").tolist() == [15 * 16 + 1, 8 * 16 + 8]


def test_four_codes_of_2_bits_fill_a_byte_and_come_out_again() -> None:
    codes = torch.tensor([[-1, 0, 1, 1, 0, -1]], dtype=torch.int8)
    packed = pack(codes, "int2")
    assert packed.tolist() == [[1 + 2 * 4 + 3 * 16 + 3 * 64, 2 + 1 * 4 + 2 * 16 + 2 * 64]]
    assert torch.equal(unpack(packed, "int2", 6), codes)


@pytest.mark.parametrize("precision", ["int8", "int4", "int2"])
def test_the_error_is_uniform_over_a_step_once_the_random_number_is_taken_off(precision: Precision) -> None:
    random = torch.Generator().manual_seed(0)
    states = torch.randn(4000, 64, generator=random)
    uniform = torch.rand(states.shape, generator=random)
    codes, scales = quantize(states, precision, uniform)
    error = (dequantize(codes, scales, uniform) - states) / scales.float()
    assert error.abs().max() <= 0.5 + 1e-3
    spread = (1 / 12 / error.numel()) ** 0.5
    assert abs(float(error.mean())) < 4.5 * spread
    assert float(error.square().mean()) == pytest.approx(1 / 12, rel=0.01)
    large = states.abs() > 1.5
    assert float(error[large].square().mean()) == pytest.approx(1 / 12, rel=0.03)
