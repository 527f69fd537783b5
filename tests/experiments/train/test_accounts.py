"""Accounts of the teacher that experiments compare, against their definitions in float64: values and gradients."""

import pytest
import torch
from torch import Tensor

from experiments.train.accounts import bucket, dropped, renormalised
from student.data.batch import GlobalCounts
from student.loss.distillation import loss_against
from student.loss.divergence import DenseDivergence, Divergence, ExactDivergence
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from tests.helpers.batches import batch_of

VOCAB, WIDTH, K = 40, 6, 5
TEMPERATURES = (1.0, 1.3, 2.0)


def defined(kind: str, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """A biased account's value at each position, written out over the whole vocabulary."""
    log_p, log_q = (torch.log_softmax(logits / temperature, -1) for logits in (teacher, student))
    top = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, teacher.topk(K).indices, value=True)
    p = torch.where(top, log_p.exp(), 0.0)
    if kind == "dropped":
        return (p * (log_p - log_q)).sum(-1)
    mass = p.sum(-1, keepdim=True)
    if kind == "renormalised":
        return (p / mass * (log_p - mass.log() - log_q)).sum(-1)
    rest, q_rest = 1 - mass[:, 0], torch.where(top, 0.0, log_q.exp()).sum(-1)
    return (p * (log_p - log_q)).sum(-1) + rest * (rest / q_rest).log()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HEAD = FrozenHead(normal(1, VOCAB, WIDTH), normal(2, VOCAB))
LABELS = torch.arange(12).view(3, 4)
MASK = torch.tensor([[True, True, False, True], [False, True, True, True], [True, True, True, False]])
BATCH = batch_of(LABELS, MASK)


def gradient(divergence: Divergence | None, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Total and gradient of the one-pass loss."""
    inputs = hidden.clone().requires_grad_()
    coefficients = Coefficients(alpha=0.6, temperature=temperature, beta=0.0)
    total = loss_against(divergence, inputs, HEAD, BATCH, coefficients, GlobalCounts(tokens=9, sequences=3)).total
    total.backward()
    assert inputs.grad is not None
    return total.detach(), inputs.grad


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("kind", "make"), [("bucket", bucket), ("renormalised", renormalised), ("dropped", dropped)])
def test_biased_accounts_are_what_they_are_called(kind, make, temperature) -> None:
    teacher, hidden = 3 * normal(3, int(MASK.sum()), VOCAB), normal(4, 3, 4, WIDTH)
    divergence = make(teacher, K, temperature)
    inputs = hidden.clone().requires_grad_()
    logits = HEAD.logits(inputs[MASK])
    expected = defined(kind, teacher, logits, temperature)
    torch.testing.assert_close(divergence.kl(logits), expected, rtol=1e-10, atol=1e-12)
    cross_entropy = torch.nn.functional.cross_entropy(logits, LABELS[MASK], reduction="sum")
    total = (0.4 * cross_entropy + 0.6 * temperature**2 * expected.sum()) / 9
    total.backward()
    found, found_gradient = gradient(divergence, hidden, temperature)
    torch.testing.assert_close(found, total.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found_gradient, inputs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_teachers_own_logits_are_the_exact_account(temperature) -> None:
    states, hidden = 3 * normal(5, int(MASK.sum()), WIDTH), normal(6, 3, 4, WIDTH)
    online = gradient(DenseDivergence(temperature, HEAD.logits(states)), hidden, temperature)
    exact = gradient(ExactDivergence(temperature, states, HEAD), hidden, temperature)
    torch.testing.assert_close(online, exact, rtol=1e-12, atol=1e-14)


def test_without_a_teacher_the_loss_is_cross_entropy_at_its_weight() -> None:
    hidden = normal(7, 3, 4, WIDTH)
    total, _ = gradient(None, hidden, 1.0)
    expected = torch.nn.functional.cross_entropy(HEAD.logits(hidden[MASK]), LABELS[MASK], reduction="sum")
    torch.testing.assert_close(total, 0.4 * expected / 9)
