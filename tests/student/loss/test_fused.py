"""The one-pass loss against autograd through the naive one: values, gradients, masks, chunks, kinds of targets."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from student.data.batch import Batch, GlobalCounts, TeacherTargets, valid_positions
from student.loss.distillation import DistillationLoss, distillation_loss
from student.loss.divergence import TermWeights
from student.loss.frobenius import FrobeniusTerm
from student.loss.fused import fused_loss
from student.loss.naive import distillation_loss_sums, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from teacher_cache.format.manifest import TargetLayout
from tests.helpers import ROOT
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


class LargestTensor(TorchDispatchMode):
    """The most elements any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        self.numel = max([self.numel, *(x.numel() for x in outputs if isinstance(x, Tensor))])
        return result


def gradient(total: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [found.double() for found in torch.autograd.grad(total, inputs, retain_graph=True)]


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
def test_float32_is_the_naive_loss_and_as_near_to_float64(kind: Kind, temperature: float) -> None:
    case = make_case(kind, vocab=3000, width=32).cast(torch.float32)
    exact, coefficients = case.cast(torch.float64), Coefficients(0.6, temperature, 0.1)
    found, naive, reference = case.fused(coefficients), case.naive(coefficients), exact.naive(coefficients)
    assert found[0].dtype == torch.float32
    for ours, theirs, right in zip(found, naive, reference, strict=True):
        assert relative_error(ours, theirs) < 1e-6
        assert relative_error(ours, right) < 1e-6
    ours, theirs = (gradient(total, case.hidden)[0] for total in (found[0], naive[0]))
    right = gradient(reference[0], exact.hidden)[0]
    assert relative_error(ours, theirs) < 1e-6
    assert relative_error(ours, right) < 2 * relative_error(theirs, right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 1.4])
def test_blocks_change_nothing(kind: Kind, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case, coefficients = make_case(kind, valid=1.0), Coefficients(0.6, temperature, 0.1)
    (whole, sums), hidden = case.fused(coefficients), case.hidden
    monkeypatch.setattr("student.loss.fused.BLOCK_LOGITS", 2 * VOCAB)
    found, block_sums = case.fused(coefficients, chunk_tokens=7)
    assert torch.allclose(block_sums, sums, rtol=1e-13)
    assert relative_error(*gradient(found, hidden), *gradient(whole, hidden)) < 1e-13


def test_gradients_pass_gradcheck() -> None:
    case = make_case(vocab=7, width=3)

    def loss(hidden: Tensor) -> Tensor:
        return replace(case, hidden=hidden).fused(Coefficients(0.6, 1.4, 0.2), chunk_tokens=2)[0]

    assert torch.autograd.gradcheck(loss, (case.hidden,))


@pytest.mark.parametrize("kind", ["sampled", "bucket"])
def test_a_head_that_is_trained_gets_its_gradient_too(kind: Kind) -> None:
    case, coefficients = make_case(kind), Coefficients(0.6, 1.4, 0.1)
    assert case.head.bias is not None
    wanted = [case.hidden, case.head.weight.requires_grad_(), case.head.bias.requires_grad_()]
    found = gradient(case.fused(coefficients, chunk_tokens=4)[0], *wanted)
    expected = gradient(case.naive(coefficients)[0], *wanted)
    assert all(relative_error(ours, theirs) < 1e-12 for ours, theirs in zip(found, expected, strict=True))


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_and_no_more(kind: Kind, dtype: torch.dtype, tolerance: float) -> None:
    """As large as the naive loss's own rounding: `eps` times the largest logits, some 10, twice in a product."""
    case, coefficients = make_case(kind, student_scale=0.3, vocab=500).cast(dtype), Coefficients(0.6, 1.4, 0.1)
    exact = case.cast(torch.float64)
    (found, sums), (expected, naive_sums) = case.fused(coefficients), exact.naive(coefficients)
    assert found.dtype == torch.float32
    assert relative_error(sums, naive_sums) < tolerance
    assert relative_error(*gradient(found, case.hidden), *gradient(expected, exact.hidden)) < tolerance


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
teacher = SampledDivergence(1.3, ids, entries, torch.zeros(tokens))

def step(few):
    part = SampledDivergence(1.3, ids[:few], entries[:few], teacher.entropy[:few])
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


TRITON_TWIN = ROOT / "tests" / "gpu" / "triton_twin.py"


def test_triton_kernels_equal_their_twin_when_interpreted() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert python(TRITON_TWIN.read_text(), "cpu", TRITON_INTERPRET="1").endswith("compared\n")


def python(program: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
