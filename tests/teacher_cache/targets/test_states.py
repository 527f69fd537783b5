"""Drawn positions and channels: probabilities, sets, what a row draws."""

import numpy as np
import pytest
from numpy.typing import NDArray

from teacher_cache.format.manifest import OFFSETS, Manifest
from teacher_cache.targets.states import (
    PHASES,
    SETS,
    channel_sampling,
    channel_sets,
    drawn_of_rows,
    fewest_channels,
    kept_positions,
)
from tests.helpers.golden import changed, golden_manifest


def sizes(width: int, *, massive: float = 1.0) -> NDArray[np.float64]:
    rms = np.exp(np.random.default_rng(0).normal(0, 1, width))
    rms[width // 2] *= massive
    return rms


def manifest_of(seq_len: int, *, drawn: int | None) -> Manifest:
    """Of rows that keep every 4th position, of states of 40 channels."""
    channels = None if drawn is None else channel_sampling(sizes(40), drawn)
    wide = changed(golden_manifest("sampled").in_version(2), "teacher", hidden_size=40)
    wide = changed(wide, "rows", seq_len=seq_len)
    return changed(wide, "hidden", mean="int8", stride=4, channels=channels)


@pytest.mark.parametrize(("width", "drawn"), [(8, 2), (40, 7), (576, 64), (1536, 64), (4096, 32), (64, 64)])
def test_every_set_holds_that_many_different_channels(width: int, drawn: int) -> None:
    sets = channel_sets(channel_sampling(sizes(width), drawn))
    assert sets.members.shape == (OFFSETS, drawn)
    assert (np.diff(sets.members, axis=1) > 0).all()


@pytest.mark.parametrize(("width", "drawn"), [(40, 7), (576, 64), (1536, 64)])
def test_weights_are_one_over_the_share_of_sets_that_hold_a_channel(width: int, drawn: int) -> None:
    sampling = channel_sampling(sizes(width), drawn)
    sets = channel_sets(sampling)
    held = np.bincount(sets.members.ravel(), minlength=width)
    assert held.min() >= 1
    assert np.allclose(sets.weights * held / OFFSETS, 1)


def test_a_channel_of_massive_activation_is_certain_and_others_keep_half_of_an_even_share() -> None:
    sampling = channel_sampling(sizes(576, massive=1e4), 64)
    assert sampling.counts[288] == OFFSETS
    assert min(sampling.counts) >= OFFSETS * 63 // 576 // 2


def test_sizes_are_powers_of_two_near_the_rms_and_silent_channels_have_one_too() -> None:
    rms = sizes(40)
    rms[3] = 0
    found = channel_sets(channel_sampling(rms, 7)).sizes
    assert np.isfinite(found).all()
    assert found[3] > 0
    others = np.delete(found / rms.clip(1e-9), 3)
    assert (others > 0.7).all()
    assert (others < 1.42).all()


def test_a_teacher_whose_states_are_all_zero_draws_evenly() -> None:
    assert set(channel_sampling(np.zeros(64), 8).counts) == {OFFSETS * 8 // 64}


@pytest.mark.parametrize("width", [8, 64, 576, 1536, 4096, 8192])
def test_the_fewest_channels_can_be_drawn_however_unequal_they_are(width: int) -> None:
    unequal = np.exp(np.random.default_rng(1).normal(0, 4, width))
    assert min(channel_sampling(unequal, fewest_channels(width)).counts) >= 1


def test_fewer_channels_than_there_are_sets_for_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels cannot be drawn of 4096"):
        channel_sampling(sizes(4096), 2)


def test_a_row_draws_the_same_whoever_asks_and_rows_draw_apart() -> None:
    manifest = manifest_of(33, drawn=7)
    together = drawn_of_rows(manifest, range(100))
    assert together[SETS].shape == (100, 9)
    for row in (0, 57):
        alone = drawn_of_rows(manifest, [row])
        assert all(np.array_equal(alone[name][0], together[name][row]) for name in (SETS, PHASES))
    assert set(together[PHASES].tolist()) == {0, 1, 2, 3}
    assert len(np.unique(together[SETS])) > 200


def test_positions_begin_at_the_phase_and_the_last_place_may_be_unused() -> None:
    manifest = manifest_of(10, drawn=None)
    kept = kept_positions(manifest.hidden, 10, np.array([0, 1, 2, 3]))
    assert kept.tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_version_1_keeps_every_stride_th_position_from_the_first() -> None:
    manifest = manifest_of(10, drawn=None)
    assert PHASES in drawn_of_rows(manifest, [0])
    assert not drawn_of_rows(manifest.in_version(1), [0])
