"""The fused loss on a GPU: its kernels against their twin, and the whole loss against autograd in float64."""

import pytest
import torch
from torch import Tensor

from delta_common.logits.transform import LogitTransform
from student.data.batch import valid_positions
from student.loss.divergence import BucketDivergence, Divergence, ExactDivergence, SampledDivergence, TermWeights
from student.loss.fused import fused_loss
from student.model.frozen import FrozenHead

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOKENS, WIDTH, VOCAB, KEPT = 300, 128, 10_007, 12


def test_kernels_equal_their_twin() -> None:
    from tests.gpu.triton_twin import compare_all

    compare_all("cuda")


def divergence(kind: str, head: FrozenHead, temperature: float) -> Divergence:
    """The same teacher in every dtype: states that bfloat16 holds, entries in float32."""
    random = torch.Generator().manual_seed(2)
    if kind == "exact":
        final = (0.3 * torch.randn(TOKENS, WIDTH, generator=random)).bfloat16()
        return ExactDivergence(temperature, final.to(head.weight), head)
    values, ids = (x.cuda() for x in (3 * torch.randn(TOKENS, VOCAB, generator=random)).topk(KEPT, dim=-1))
    wide = values.to(torch.promote_types(head.weight.dtype, torch.float32))
    if kind == "bucket":
        return BucketDivergence(temperature, ids, wide, torch.full_like(wide[:, 0], 0.4))
    return SampledDivergence(
        temperature, ids, torch.softmax(wide, -1), torch.ones_like(wide[:, 0]), wide, torch.logsumexp(wide, -1)
    )


def naive(hidden: Tensor, head: FrozenHead, labels: Tensor, teacher: Divergence, weights: TermWeights) -> Tensor:
    logits = head.logits(hidden[0])
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
    return weights.cross_entropy * cross_entropy + weights.kl * teacher.kl(logits).sum()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 5e-3), (torch.float64, 1e-10)],
)
@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
@pytest.mark.parametrize("kind", ["sampled", "bucket", "exact"])
@pytest.mark.parametrize("transform", [None, LogitTransform(scale=0.5, cap=2.0)], ids=["plain", "capped"])
def test_values_and_gradients_are_those_of_autograd(
    kind: str, temperature: float, dtype: torch.dtype, tolerance: float, transform: LogitTransform | None
) -> None:
    random = torch.Generator().manual_seed(1)
    weight = (0.1 * torch.randn(VOCAB, WIDTH, generator=random)).to("cuda", dtype)
    hidden = torch.randn(1, TOKENS, WIDTH, generator=random).to("cuda", dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (1, TOKENS), generator=random).cuda()
    weights = TermWeights(0.4 / TOKENS, 0.6 * temperature**2 / TOKENS)
    mask = torch.ones(1, TOKENS, dtype=torch.bool, device="cuda")
    head = FrozenHead(weight, transform=transform)
    found = fused_loss(
        hidden, head, labels, valid_positions(mask), divergence(kind, head, temperature), weights, chunk_tokens=128
    )
    found.value.backward()
    exact_head, exact = FrozenHead(weight.double(), transform=transform), hidden.detach().double().requires_grad_()
    expected = naive(exact, exact_head, labels, divergence(kind, exact_head, temperature), weights)
    expected.backward()
    assert hidden.grad is not None
    assert exact.grad is not None
    assert found.value.item() == pytest.approx(expected.item(), rel=tolerance)
    assert (hidden.grad.double() - exact.grad).norm() < tolerance * exact.grad.norm()


def test_peak_memory_is_a_chunk_and_the_states() -> None:
    """32,768 tokens of a vocabulary of 151,936 in less than 2 GiB beside weights and states: the logits are 9.3 GiB."""
    vocab, width, tokens = 151_936, 1536, 32_768
    head = FrozenHead(torch.randn(vocab, width, device="cuda", dtype=torch.bfloat16) / 40)
    hidden = torch.randn(1, tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocab, (1, tokens), device="cuda")
    ids = torch.randint(0, vocab, (tokens, 32), device="cuda")
    zeros = torch.zeros(tokens, device="cuda")
    teacher = SampledDivergence(1.3, ids, torch.full(ids.shape, 1 / 32, device="cuda"), zeros, ids.float(), zeros)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    weights = TermWeights(0.5 / tokens, 0.5 / tokens)
    fused_loss(hidden, head, labels, torch.arange(tokens, device="cuda"), teacher, weights).value.backward()
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30
