import numpy as np
import pytest
import torch

from teacher_cache.targets.randomness import Purpose, rounding_keys, rounding_uniforms, row_uniforms

CPU = torch.device("cpu")


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
