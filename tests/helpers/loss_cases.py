"""Micro-batches of every kind of targets, and their loss in one pass and plainly."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from delta_common.logits.transform import LogitTransform
from student.data.batch import Batch, GlobalCounts, TeacherTargets
from student.loss.distillation import DistillationLoss, distillation_loss
from student.loss.frobenius import FrobeniusTerm
from student.loss.naive import distillation_loss_sums, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from teacher_cache.format.manifest import TargetLayout
from tests.helpers.batches import batch_of
from tests.helpers.layouts import keep, layout

Kind = Literal["sampled", "bucket", "exact"]


KINDS: tuple[Kind, ...] = ("sampled", "bucket", "exact")


VOCAB, WIDTH = 60, 8


COUNTS = GlobalCounts(tokens=11, sequences=3)


@dataclass(frozen=True)
class Case:
    """A micro-batch; gradients are wanted for the hidden states."""

    hidden: Tensor
    head: FrozenHead
    labels: Tensor
    mask: Tensor
    targets: TeacherTargets
    hidden_mean: Tensor

    @property
    def batch(self) -> Batch:
        return batch_of(self.labels, self.mask, self.targets, self.hidden_mean)

    def naive(self, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Eq. 38 by autograd, with the sums of CE, KL and F."""
        sums = distillation_loss_sums(
            self.hidden, self.head, self.batch, temperature=coefficients.temperature, frobenius=FrobeniusTerm()
        )
        total = total_loss(sums, coefficients, COUNTS)
        return total, torch.stack([sums.cross_entropy, sums.kl, sums.frobenius])

    def fused(self, coefficients: Coefficients, chunk_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        found: DistillationLoss = distillation_loss(
            self.hidden,
            self.head,
            self.batch,
            coefficients,
            COUNTS,
            frobenius=FrobeniusTerm(),
            chunk_tokens=chunk_tokens,
        )
        sums = found.sums
        return found.total, torch.stack([sums.cross_entropy, sums.kl, sums.frobenius])

    def cast(self, dtype: torch.dtype, head_dtype: torch.dtype | None = None) -> "Case":
        bias = None if self.head.bias is None else self.head.bias.to(head_dtype or dtype)
        head = replace(self.head, weight=self.head.weight.to(head_dtype or dtype), bias=bias)
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
    rows: int = 3,
    length: int = 5,
    transform: LogitTransform | None = None,
) -> Case:
    """Everything in float64; sampled and bucket targets of a random teacher, or its final states."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

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
        head=FrozenHead(normal(vocab, width), normal(vocab) if bias else None, transform=transform),
        labels=torch.randint(0, vocab, (rows, length), generator=random),
        mask=torch.rand(rows, length, generator=random) < valid,
        targets=TeacherTargets(*entries, final_hidden=final_hidden, layout=kept_as),
        hidden_mean=normal(rows, length, width).float(),
    )


def gradient(total: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [found.double() for found in torch.autograd.grad(total, inputs, retain_graph=True)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))
