"""The Frobenius term against its definition: values, gradients, masks, norms, drawn positions and channels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from student.data.batch import AveragedStates
from student.loss.channel_scale import channel_rms
from student.loss.frobenius import FrobeniusNorm, FrobeniusTerm, StateMap, frobenius_sum
from tests.helpers.cached_students import Student, make_student
from tests.helpers.loss_cases import relative_error


def term_of(case: Student, norm: FrobeniusNorm, channels: str) -> FrobeniusTerm:
    """The term as training takes it, with a map that is no identity."""
    rms = None if channels == "raw" else channel_rms(case.cache)
    state_map = None
    if channels == "mapped":
        state_map = StateMap(40).double()
        random = torch.Generator().manual_seed(9)
        with torch.no_grad():
            state_map.weight += 0.3 * torch.randn(40, 40, generator=random, dtype=torch.float64)
            state_map.bias += torch.randn(40, generator=random, dtype=torch.float64)
    return FrobeniusTerm(norm, rms, state_map)


def frobenius_naive(case: Student, mask: Tensor, term: FrobeniusTerm) -> tuple[Tensor, int]:
    """Eq. 37 in float64, number by number; and the sequences it is over."""
    teacher = case.batch.averaged
    assert teacher is not None
    rms = torch.ones(40) if term.channel_rms is None else term.channel_rms
    sums, counts = [], []
    for row in range(6):
        squares = []
        for place, position in enumerate(teacher.positions[row].tolist()):
            if position >= 10 or not mask[row, position]:
                continue
            states = case.hidden[row, position].double()
            states = states / rms.double() if term.state_map is None else term.state_map(states)
            for index in range(teacher.values.shape[2]):
                channel = index if teacher.channels is None else int(teacher.channels[row, place, index])
                weight = 1.0 if teacher.weights is None else teacher.weights[row, place, index].double()
                size = rms[channel].double()
                wanted = teacher.values[row, place, index].double() / size
                rounding = 0.0 if teacher.variance is None else teacher.variance[row, place, index].double() / size**2
                squares.append(weight * ((wanted - states[channel]).square() - rounding))
        if squares:
            sums.append(torch.stack(squares).sum())
            counts.append(40 * len(squares) / teacher.values.shape[2])
    if term.norm == "batch":
        return (torch.stack(sums).sum() / sum(counts)).clamp(min=0).sqrt() * len(sums), len(sums)
    return sum(((x / n).clamp(min=0).sqrt() for x, n in zip(sums, counts, strict=True)), torch.zeros(())), len(sums)


@pytest.mark.parametrize("channels", ["raw", "normalised", "mapped"])
@pytest.mark.parametrize("norm", ["sequence", "batch"])
@pytest.mark.parametrize(("stride", "drawn"), [(1, None), (4, None), (1, 7), (4, 7)])
@pytest.mark.parametrize("precision", ["lossless", "int8", "int4", "int2"])
def test_frobenius_equals_its_definition_in_float64(
    tmp_path: Path, precision: str, stride: int, drawn: int | None, norm: FrobeniusNorm, channels: str
) -> None:
    kept = {"hidden": precision, "hidden_stride": stride, "hidden_channels": drawn}
    case = make_student(tmp_path / "cache", rows_per_shard=4, **kept)
    assert case.batch.averaged is not None
    assert case.batch.averaged.values.shape == (6, -(-10 // stride), drawn or 40)
    case = replace(case, hidden=case.hidden.detach().double().requires_grad_())
    term = term_of(case, norm, channels)
    mask = torch.rand(6, 10, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[3] = False
    mask[3, 3] = case.batch.averaged.positions[3, 0] != 3  # with a stride of 4 this position is not cached
    masked = replace(case, batch=replace(case.batch, loss_mask=mask, known_positions=None))
    found = masked.offline(1.0, frobenius=term)
    expected, sequences = frobenius_naive(case, mask, term)
    assert (sequences < 6) == (stride > 1)
    assert relative_error(found.frobenius, expected) < 1e-6
    gradients = [torch.autograd.grad(value, case.hidden)[0] for value in (found.frobenius, expected)]
    assert relative_error(*gradients) < 1e-6


def test_drawn_channels_give_the_whole_sum_and_its_gradient_in_expectation(tmp_path: Path) -> None:
    """All 256 sets weighted alike are the expectation: no statistics are needed."""
    case = make_student(tmp_path / "cache", hidden="lossless", hidden_channels=7)
    drawn, rows = case.batch.averaged, case.cache.rows(range(6))
    assert drawn is not None
    assert drawn.weights is not None
    assert rows.manifest.hidden.channels is not None
    counts = torch.tensor(rows.manifest.hidden.channels.counts)
    everything = torch.repeat_interleave(torch.arange(40), counts).view(7, 256).T.contiguous()
    assert counts.unique().numel() > 2  # they are drawn with different probabilities
    states = torch.randn(1, 1, 40, dtype=torch.float64, requires_grad=True)
    teacher = 10 * torch.randn(1, 1, 40, dtype=torch.float64)
    mask, place = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)
    squares = []
    for members in everything:
        weights = (256 / counts[members].double()).view(1, 1, -1)
        part = AveragedStates(teacher[..., members], place, members.view(1, 1, -1), weights)
        squares.append(frobenius_sum(states, part, mask, FrobeniusTerm()).square())
    mean, whole = (
        torch.stack(squares).mean(),
        frobenius_sum(states, AveragedStates(teacher, place), mask, FrobeniusTerm()).square(),
    )
    assert relative_error(mean, whole) < 1e-12
    gradients = [torch.autograd.grad(value, states)[0] for value in (mean, whole)]
    assert relative_error(*gradients) < 1e-12


def test_a_map_begins_as_the_identity_and_is_trained(tmp_path: Path) -> None:
    case = make_student(tmp_path / "cache")
    rms = torch.ones(40)
    plain = case.offline(1.0, frobenius=FrobeniusTerm(channel_rms=rms)).frobenius
    state_map = StateMap(40)
    mapped = case.offline(1.0, frobenius=FrobeniusTerm(channel_rms=rms, state_map=state_map)).frobenius
    assert relative_error(mapped, plain) < 1e-6
    mapped.backward()
    assert state_map.weight.grad is not None
    assert state_map.weight.grad.abs().sum() > 0


def test_a_map_in_16_bits_is_the_same_where_deepspeed_has_replaced_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    random = torch.Generator().manual_seed(4)
    state_map, states = StateMap(40).bfloat16(), torch.randn(2, 32, 40, generator=random).bfloat16()
    with torch.no_grad():
        state_map.weight += torch.randn(40, 40, generator=random)
        state_map.bias += torch.randn(40, generator=random)
    before = state_map(states)
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    assert torch.equal(state_map(states), before)
