"""The Frobenius term against its definition: values, gradients, masks, norms."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from student.loss.channel_scale import channel_rms
from student.loss.frobenius import FrobeniusNorm, FrobeniusTerm
from tests.helpers.cached_students import Student, make_student
from tests.helpers.loss_cases import relative_error


def frobenius_naive(case: Student, mask: Tensor, term: FrobeniusTerm, rms: list[float]) -> tuple[Tensor, int]:
    """Eq. 37 in float64, position by position; and the sequences it is over."""
    assert case.batch.hidden_mean is not None
    states, per_sequence, everything = case.hidden.double(), [], []
    for row in range(6):
        squares = []
        for position in range(0, 10, term.stride):
            if mask[row, position]:
                teacher = case.batch.hidden_mean[row, position // term.stride].double()
                squares += [((teacher - states[row, position]) / torch.tensor(rms).double()).square()]
        if squares:
            per_sequence.append(torch.cat(squares).mean().sqrt())
            everything += squares
    if term.norm == "batch":
        return torch.cat(everything).mean().sqrt() * len(per_sequence), len(per_sequence)
    return torch.stack(per_sequence).sum(), len(per_sequence)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("norm", ["sequence", "batch"])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("precision", ["lossless", "int8", "int4"])
def test_frobenius_equals_its_definition_in_float64(
    tmp_path: Path, precision: str, stride: int, norm: FrobeniusNorm, normalised: bool
) -> None:
    case = make_student(tmp_path / "cache", hidden=precision, hidden_stride=stride, rows_per_shard=4)
    assert case.batch.hidden_mean is not None
    assert case.batch.hidden_mean.shape == (6, -(-10 // stride), 40)
    first_shard = case.batch.hidden_mean[:4].double()
    rms = first_shard.square().mean(dim=(0, 1)).sqrt().tolist() if normalised else [1.0] * 40
    term = FrobeniusTerm(norm, stride, channel_rms(case.cache) if normalised else None)
    mask = torch.rand(6, 10, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[3] = torch.arange(10) == 1  # a sequence whose only valid position is not cached with a stride of 4
    masked = replace(case, batch=replace(case.batch, loss_mask=mask))
    found = masked.offline(1.0, frobenius=term)
    expected, sequences = frobenius_naive(case, mask, term, rms)
    assert sequences == (6 if stride == 1 else 5)
    assert relative_error(found.frobenius, expected) < 1e-6
    gradients = [torch.autograd.grad(value, case.hidden)[0] for value in (found.frobenius, expected)]
    assert relative_error(*gradients) < 1e-6
