"""The one-pass loss against autograd through the naive one: values, gradients, masks, chunks, kinds of targets."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layouts import keep, layout
from student.divergence import TeacherTargets, TermWeights
from student.frozen_weights import FrozenHead
from student.fused_loss import fused_loss
from student.loss import (
    DistillationLoss,
    FrobeniusTerm,
    distillation_loss,
    distillation_loss_sums,
    total_loss,
)
from student.schedule import Coefficients
from teacher_cache.format import TargetLayout

Kind = Literal["sampled", "bucket", "exact"]
KINDS: tuple[Kind, ...] = ("sampled", "bucket", "exact")
VOCAB, WIDTH = 60, 8


@dataclass(frozen=True)
class Case:
    """A micro-batch; gradients are wanted for the hidden states."""

    hidden: Tensor
    head: FrozenHead
    labels: Tensor
    mask: Tensor
    targets: TeacherTargets
    hidden_mean: Tensor

    def naive(self, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Eq. 38 by autograd, with the sums of CE, KL and F."""
        sums = distillation_loss_sums(
            self.hidden,
            self.head,
            self.labels,
            self.mask,
            self.targets,
            temperature=coefficients.temperature,
            hidden_mean=self.hidden_mean,
            frobenius=FrobeniusTerm(),
        )
        total = total_loss(sums, coefficients, tokens=11, sequences=3)
        return total, torch.stack([sums.cross_entropy, sums.kl, sums.frobenius])

    def fused(self, coefficients: Coefficients, chunk_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        found: DistillationLoss = distillation_loss(
            self.hidden,
            self.head,
            self.labels,
            self.mask,
            self.targets,
            coefficients,
            tokens=11,
            sequences=3,
            hidden_mean=self.hidden_mean,
            frobenius=FrobeniusTerm(),
            chunk_tokens=chunk_tokens,
        )
        sums = found.sums
        return found.total, torch.stack([sums.cross_entropy, sums.kl, sums.frobenius])

    def cast(self, dtype: torch.dtype, head_dtype: torch.dtype | None = None) -> "Case":
        bias = None if self.head.bias is None else self.head.bias.to(head_dtype or dtype)
        head = FrozenHead(self.head.weight.to(head_dtype or dtype), bias)
        return replace(self, hidden=self.hidden.detach().to(dtype).requires_grad_(), head=head)


def make_case(
    kind: Kind = "sampled",
    *,
    seed: int = 0,
    vocab: int = VOCAB,
    width: int = WIDTH,
    bias: bool = True,
    top_k: int = 4,
    samples: int = 8,
    student_scale: float = 1.0,
    teacher_scale: float = 3.0,
    valid: float = 0.7,
) -> Case:
    """Everything in float64; sampled and bucket targets of a random teacher, or its final states."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    rows, length = 3, 5
    final_hidden = None
    entries: list[Tensor | None] = [None, None, None]
    kept_as: TargetLayout = layout(min(top_k, vocab), samples if kind == "sampled" else 0)
    if kind == "exact":
        final_hidden = teacher_scale * normal(rows, length, width)
    else:
        kept = keep(teacher_scale * normal(rows * length, vocab).float(), kept_as, seed)
        entries = [x.view(rows, length, -1) for x in (kept.ids, kept.values, kept.log_mass)]
    return Case(
        hidden=(student_scale * normal(rows, length, width)).requires_grad_(),
        head=FrozenHead(normal(vocab, width), normal(vocab) if bias else None),
        labels=torch.randint(0, vocab, (rows, length), generator=random),
        mask=torch.rand(rows, length, generator=random) < valid,
        targets=TeacherTargets(*entries, final_hidden=final_hidden, layout=kept_as),
        hidden_mean=normal(rows, length, width).float(),
    )


def gradient(total: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [found.double() for found in torch.autograd.grad(total, inputs)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 4])
@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_autograd(
    kind: Kind, temperature: float, chunk_tokens: int | None, bias: bool
) -> None:
    case, coefficients = make_case(kind, bias=bias), Coefficients(0.6, temperature, 0.1)
    (found, sums), (expected, naive_sums) = case.fused(coefficients, chunk_tokens), case.naive(coefficients)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(sums, naive_sums, rtol=1e-12)
    assert relative_error(*gradient(found, case.hidden), *gradient(expected, case.hidden)) < 1e-12
    assert not sums.requires_grad
    assert torch.all(gradient(case.fused(coefficients)[0], case.hidden)[0][~case.mask] == 0)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_no_shape_or_scale_breaks_it(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(2, 70))
    case = make_case(
        data.draw(st.sampled_from(KINDS)),
        seed=data.draw(st.integers(0, 2**31)),
        vocab=vocab,
        top_k=data.draw(st.integers(1, vocab)),
        samples=data.draw(st.integers(1, 20)),
        student_scale=data.draw(st.sampled_from([0.0, 0.3, 3.0, 30.0])),
        teacher_scale=data.draw(st.sampled_from([0.0, 0.3, 3.0, 20.0])),
        valid=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    alpha, temperature = data.draw(st.sampled_from([0.0, 0.3, 1.0])), data.draw(st.sampled_from([1.0, 1.1, 2.0]))
    coefficients = Coefficients(alpha, temperature, 0.0)
    found, sums = case.fused(coefficients, data.draw(st.sampled_from([None, 1, 3, 100])))
    expected, naive_sums = case.naive(coefficients)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(sums, naive_sums, rtol=1e-10, atol=1e-12)
    assert torch.allclose(*gradient(found, case.hidden), *gradient(expected, case.hidden), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_as_near_to_float64_as_the_naive_loss(kind: Kind, temperature: float) -> None:
    case = make_case(kind, vocab=3000, width=32).cast(torch.float32)
    exact, coefficients = case.cast(torch.float64), Coefficients(0.6, temperature, 0.1)
    # The mean of the teacher's states and the stored targets are float32 in both.
    expected, naive_sums = exact.naive(coefficients)
    found, sums = case.fused(coefficients)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-6
    assert relative_error(sums, naive_sums) < 1e-6
    assert relative_error(*gradient(found, case.hidden), *gradient(expected, exact.hidden)) < 1e-6
