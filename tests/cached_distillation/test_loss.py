"""The loss for any student equals the naive twin of `student-train`'s, values and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cached_distillation.batch import CachedBatch, collate
from cached_distillation.dataset import CacheDataset
from cached_distillation.loss import distillation_loss
from delta_common.errors import UserError
from student.data.batch import GlobalCounts
from student.loss.divergence import ExactDivergence
from student.loss.frobenius import FrobeniusTerm, frobenius_sum
from student.loss.naive import distillation_loss_sums, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from teacher_cache.build.synthetic import make_synthetic_cache

VOCAB, WIDTH = 48, 16
KINDS: dict[str, dict[str, Any]] = {"bucket": {}, "sampled": {"samples": 6}, "exact": {"mode": "exact"}}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CacheDataset]:
    folder = tmp_path_factory.mktemp("kinds")
    sizes = {"rows": 4, "seq_len": 10, "vocab_size": VOCAB, "top_k": 5, "hidden_size": WIDTH}
    paths: dict[str, Path] = {kind: folder / kind for kind in KINDS}
    return {
        kind: CacheDataset(make_synthetic_cache(path, **sizes, **KINDS[kind]), hidden_states=True)
        for kind, path in paths.items()
    }


def batch_of(dataset: CacheDataset) -> CachedBatch:
    return collate([dataset[number] for number in range(len(dataset))])


def states(width: int = WIDTH) -> Tensor:
    return torch.randn(4, 10, width, generator=torch.Generator().manual_seed(0)).requires_grad_()


def head(width: int = WIDTH, rows: int = VOCAB + 8) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(width, rows)


@pytest.mark.parametrize("kind", ["bucket", "sampled"])
@pytest.mark.parametrize("width", [WIDTH, 24])
def test_it_is_the_naive_twin(datasets: dict[str, CacheDataset], kind: str, width: int) -> None:
    batch, hidden, lm_head = batch_of(datasets[kind]), states(width), head(width)
    beta = 0.2 if width == WIDTH else 0.0
    counts = GlobalCounts(tokens=97, sequences=7)
    found = distillation_loss(
        hidden, lm_head, batch, alpha=0.6, temperature=1.4, beta=beta, counts=counts, chunk_tokens=7
    )
    real = FrozenHead(lm_head.weight[:VOCAB], lm_head.bias[:VOCAB])
    term = FrobeniusTerm() if beta else None
    sums = distillation_loss_sums(hidden, real, batch.widened, temperature=1.4, frobenius=term)
    expected = total_loss(sums, Coefficients(0.6, 1.4, beta), counts)
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    inputs = [hidden, lm_head.weight, lm_head.bias]
    pairs = zip(torch.autograd.grad(found.total, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for ours, theirs in pairs:
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())
    assert not torch.autograd.grad(
        distillation_loss(hidden, lm_head, batch, alpha=0.6, temperature=1.4).total, lm_head.weight
    )[0][VOCAB:].any()


def test_exact_targets_come_from_the_teachers_head(datasets: dict[str, CacheDataset]) -> None:
    dataset, hidden, lm_head = datasets["exact"], states(24), head(24)
    batch, teacher = batch_of(dataset), dataset.teacher_head()
    assert teacher is not None
    found = distillation_loss(hidden, lm_head, batch, alpha=1.0, temperature=1.4, teacher_head=teacher)
    rows = batch.widened
    assert rows.targets.final_hidden is not None
    own = FrozenHead(lm_head.weight[:VOCAB], lm_head.bias[:VOCAB])
    kl = ExactDivergence(1.4, rows.targets.final_hidden[rows.loss_mask], teacher).kl(own.logits(hidden[rows.loss_mask]))
    assert float(found.total.detach()) == pytest.approx(1.4**2 * float(kl.detach().mean()), rel=1e-5)
    with pytest.raises(UserError, match="exact mode; give teacher_head"):
        distillation_loss(hidden, lm_head, batch, alpha=1.0, temperature=1.4)


def test_the_frobenius_term_counts_rows(datasets: dict[str, CacheDataset]) -> None:
    batch, hidden = batch_of(datasets["bucket"]), states()
    found = distillation_loss(hidden, head(), batch, alpha=0.0, temperature=1.0, beta=1.0)
    rows = batch.widened
    expected = frobenius_sum(hidden, rows.averaged, rows.loss_mask, FrobeniusTerm()) / 4
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_a_frozen_head_costs_no_gradient(datasets: dict[str, CacheDataset]) -> None:
    lm_head, hidden = head().requires_grad_(False), states()
    distillation_loss(hidden, lm_head, batch_of(datasets["bucket"]), alpha=0.5, temperature=1.0).total.backward()
    assert lm_head.weight.grad is None
    assert hidden.grad is not None
    assert hidden.grad.any()


def test_under_autocast_it_is_computed_in_that_type(datasets: dict[str, CacheDataset]) -> None:
    batch, hidden, lm_head = batch_of(datasets["sampled"]), states(), head()
    exact = distillation_loss(hidden, lm_head, batch, alpha=0.5, temperature=1.5).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = distillation_loss(hidden, lm_head, batch, alpha=0.5, temperature=1.5).total
    assert rounded.dtype == torch.float32
    assert 0 < abs(float((rounded - exact).detach())) < 0.02 * float(exact.detach())
    rounded.backward()
    assert lm_head.weight.grad is not None
    assert lm_head.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 3.0}, "temperature 3 is outside the cached range 1 to 2"),
        ({"temperature": 0.0}, "temperature 0: give one above 0"),
        ({"alpha": 1.2}, "alpha 1.2: give a weight from 0 to 1"),
        ({"beta": 0.6}, "alpha 0.5 and beta 0.6 sum to more than 1"),
    ],
)
def test_what_cannot_be_is_refused(datasets: dict[str, CacheDataset], given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distillation_loss(states(), head(), batch_of(datasets["bucket"]), **{"alpha": 0.5, "temperature": 1.0, **given})


def test_states_that_do_not_fit_are_refused(datasets: dict[str, CacheDataset]) -> None:
    batch = batch_of(datasets["bucket"])
    with pytest.raises(UserError, match=r"there must be one per token"):
        distillation_loss(states()[:, 1:], head(), batch, alpha=0.5, temperature=1.0)
    with pytest.raises(UserError, match="the student's hidden states have 24 channels, the teacher's 16"):
        distillation_loss(states(24), head(24), batch, alpha=0.5, temperature=1.0, beta=0.1)
    plain = CacheDataset(datasets["bucket"].cache)
    with pytest.raises(UserError, match="hidden_states=True"):
        distillation_loss(states(), head(), batch_of(plain), alpha=0.5, temperature=1.0, beta=0.1)
