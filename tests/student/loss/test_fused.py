"""The one-pass loss against autograd through the naive one: values, gradients, masks, chunks, kinds of targets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from delta_common.logits.transform import LogitTransform
from student.data.batch import valid_positions
from student.loss.divergence import TermWeights
from student.loss.fused import fused_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from tests.helpers.loss_cases import KINDS, VOCAB, Kind, gradient, make_case, relative_error
from tests.helpers.programs import python

BENT = LogitTransform(scale=0.5, cap=3.0)
"""A transform that shows at the sizes of the cases' logits."""


class LargestTensor(TorchDispatchMode):
    """The most elements any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        self.numel = max([self.numel, *(x.numel() for x in outputs if isinstance(x, Tensor))])
        return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 1.4])
def test_blocks_change_nothing(kind: Kind, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case, coefficients = make_case(kind, valid=1.0), Coefficients(0.6, temperature, 0.1)
    (whole, sums), hidden = case.fused(coefficients), case.hidden
    monkeypatch.setattr("student.loss.fused.BLOCK_LOGITS", 2 * VOCAB)
    found, block_sums = case.fused(coefficients, chunk_tokens=7)
    assert torch.allclose(block_sums, sums, rtol=1e-13)
    assert relative_error(*gradient(found, hidden), *gradient(whole, hidden)) < 1e-13


@pytest.mark.parametrize("kind", ["sampled", "bucket"])
def test_a_head_that_is_trained_gets_its_gradient_too(kind: Kind) -> None:
    case, coefficients = make_case(kind), Coefficients(0.6, 1.4, 0.1)
    assert case.head.bias is not None
    wanted = [case.hidden, case.head.weight.requires_grad_(), case.head.bias.requires_grad_()]
    found = gradient(case.fused(coefficients, chunk_tokens=4)[0], *wanted)
    expected = gradient(case.naive(coefficients)[0], *wanted)
    assert all(relative_error(ours, theirs) < 1e-12 for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("transform", [LogitTransform(cap=4.0), LogitTransform(scale=0.3), BENT], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_goes_through_what_lies_behind_the_head(kind: Kind, transform: LogitTransform) -> None:
    """Values and gradients of states, weight and bias; in exact mode the teacher's logits are bent too."""
    case, coefficients = make_case(kind, transform=transform), Coefficients(0.6, 1.4, 0.1)
    if kind == "exact":
        wanted = [case.hidden]
    else:
        assert case.head.bias is not None
        wanted = [case.hidden, case.head.weight.requires_grad_(), case.head.bias.requires_grad_()]
    (found, sums), (expected, naive_sums) = case.fused(coefficients, chunk_tokens=4), case.naive(coefficients)
    assert torch.allclose(sums, naive_sums, rtol=1e-12)
    for ours, theirs in zip(gradient(found, *wanted), gradient(expected, *wanted), strict=True):
        assert relative_error(ours, theirs) < 1e-12
    plain = replace(case, head=replace(case.head, transform=None))
    assert relative_error(*gradient(found, case.hidden), *gradient(plain.fused(coefficients)[0], case.hidden)) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_in_16_bits_a_soft_cap_costs_no_more_precision_than_the_logits(kind: Kind) -> None:
    case, coefficients = make_case(kind, transform=BENT), Coefficients(0.6, 1.4, 0.0)
    exact = gradient(case.fused(coefficients)[0], case.hidden)[0]
    low = case.cast(torch.bfloat16)
    assert relative_error(gradient(low.fused(coefficients)[0], low.hidden)[0], exact) < 0.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_padding_of_the_head_takes_no_part(kind: Kind, dtype: torch.dtype) -> None:
    """Rows so large that they would win every softmax; their own gradient is 0."""
    case, coefficients = make_case(kind).cast(dtype), Coefficients(0.6, 1.4, 0.1)
    bias = case.head.bias
    assert bias is not None
    more, high = torch.full((3, case.head.weight.shape[1]), 1e3, dtype=dtype), torch.full((3,), 1e3, dtype=dtype)
    padded = FrozenHead(torch.cat([case.head.weight, more]), torch.cat([bias, high]), VOCAB)
    with_padding = replace(case, head=padded)
    assert padded.bias is not None
    wanted = [case.hidden, case.head.weight.requires_grad_(), bias.requires_grad_()]
    theirs = [case.hidden, padded.weight.requires_grad_(), padded.bias.requires_grad_()]
    (expected, sums), (found, padded_sums) = (each.fused(coefficients, chunk_tokens=4) for each in (case, with_padding))
    assert torch.equal(padded_sums, sums)
    for ours, alone in zip(gradient(found, *theirs), gradient(expected, *wanted), strict=True):
        assert torch.equal(ours if ours.shape == alone.shape else ours[:VOCAB], alone)
    assert not any(part[VOCAB:].any() for part in gradient(with_padding.fused(coefficients)[0], *theirs)[1:])


def test_a_head_alone_may_want_a_gradient() -> None:
    case, coefficients = make_case(), Coefficients(0.6, 1.4, 0.0)
    case = replace(case, hidden=case.hidden.detach(), head=FrozenHead(case.head.weight.requires_grad_()))
    found, expected = (gradient(loss(coefficients)[0], case.head.weight)[0] for loss in (case.fused, case.naive))
    assert relative_error(found, expected) < 1e-12


def test_cross_entropy_alone_needs_no_teacher() -> None:
    case = make_case()
    found = fused_loss(case.hidden, case.head, case.labels, valid_positions(case.mask), None, TermWeights(0.25, 0.0))
    logits = case.head.logits(case.hidden)[case.mask]
    expected = torch.nn.functional.cross_entropy(logits, case.labels[case.mask], reduction="sum")
    assert torch.allclose(found.cross_entropy, expected, rtol=1e-13)
    assert found.kl == 0
    assert relative_error(*gradient(found.value, case.hidden), *gradient(0.25 * expected, case.hidden)) < 1e-13


def test_a_loss_scale_saves_a_float16_gradient_that_the_counts_would_lose() -> None:
    """Divided by 16 million tokens the gradient is below what float16 holds; the loss scale comes before rounding."""
    case = make_case(vocab=500).cast(torch.float16)
    divergence, scale, tokens = None, 2.0**20, 2.0**24
    weights = TermWeights(1 / tokens, 0.0)
    found = fused_loss(case.hidden, case.head, case.labels, valid_positions(case.mask), divergence, weights)
    scaled, plain = (gradient(found.value * factor, case.hidden)[0] for factor in (scale, 1.0))
    exact = case.cast(torch.float64)
    expected = fused_loss(exact.hidden, exact.head, exact.labels, valid_positions(exact.mask), divergence, weights)
    assert relative_error(scaled / scale, *gradient(expected.value, exact.hidden)) < 2e-3
    assert relative_error(plain, *gradient(expected.value, exact.hidden)) > 2e-2


def test_no_tensor_is_as_large_as_all_logits() -> None:
    case = make_case(valid=1.0, vocab=400)
    with LargestTensor() as largest:
        case.fused(Coefficients(0.6, 1.4, 0.1), chunk_tokens=10)[0].backward()
    assert largest.numel == 10 * 400


PEAK = """
import resource, sys, torch
from student.loss.divergence import SampledDivergence, TermWeights
from student.model.frozen import FrozenHead
from student.loss.fused import fused_loss

tokens, vocab = int(sys.argv[1]), 50_000
torch.set_num_threads(1)
hidden, head = torch.randn(1, tokens, 16, requires_grad=True), FrozenHead(torch.randn(vocab, 16))
labels, places = torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens)
ids, entries = torch.arange(8).expand(tokens, 8), torch.full((tokens, 8), 0.125)
teacher = SampledDivergence(1.3, ids, entries, torch.zeros(tokens), entries, torch.zeros(tokens))

def step(few):
    part = next(teacher.split(few))
    batch = hidden[:, :few], head, labels[:, :few], places[:few]
    found = fused_loss(*batch, part, TermWeights(1.0, 1.0), chunk_tokens=64)
    found.value.backward()

step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(tokens)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_does_not_grow_with_the_logits() -> None:
    """16 times the tokens: logits would be 15 times 100 MB more in float32, states and entries are 1 MB."""
    grown = [int(python(PEAK, str(tokens))) for tokens in (512, 8192)]
    assert max(grown) < 16 * 1024, "KiB"
