"""The student's loss against naive twins in float64: values, gradients, masks, chunks and padding."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from student.data.batch import GlobalCounts, TeacherTargets
from student.loss.distillation import LossSums
from student.loss.frobenius import FrobeniusNorm, FrobeniusTerm
from student.loss.naive import dense_distillation_loss, distillation_loss_sums, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from tests.helpers.batches import batch_of
from tests.helpers.layouts import layout


@dataclass(frozen=True)
class Case:
    """A micro-batch with the teacher's full logits; log-mass is exact at the one temperature asked for."""

    hidden: Tensor
    head: FrozenHead
    labels: Tensor
    mask: Tensor
    teacher: Tensor
    hidden_mean: Tensor

    def targets(self, top_k: int, temperature: float) -> TeacherTargets:
        values, ids = self.teacher.topk(top_k, dim=-1)
        return sparse_targets(ids, values.float(), log_rest(self.teacher, ids, temperature).float())

    def sums(self, top_k: int, temperature: float, frobenius: FrobeniusTerm | None = None, **options: Any) -> LossSums:
        return self.sums_of(
            self.targets(top_k, temperature), temperature, frobenius=frobenius or FrobeniusTerm(), **options
        )

    def sums_of(self, targets: TeacherTargets, temperature: float, **options: Any) -> LossSums:
        batch = batch_of(self.labels, self.mask, targets, self.hidden_mean)
        return distillation_loss_sums(self.hidden, self.head, batch, temperature=temperature, **options)

    def dense(self, temperature: float) -> LossSums:
        batch = batch_of(self.labels, self.mask, hidden_mean=self.hidden_mean)
        return dense_distillation_loss(
            self.hidden, self.head, batch, self.teacher, temperature=temperature, frobenius=FrobeniusTerm()
        )


def sparse_targets(ids: Tensor, values: Tensor, log_mass: Tensor) -> TeacherTargets:
    """Entries (..., K) with the same log-mass (...) at every node, and so at every temperature."""
    kept = layout(values.shape[-1])
    every_node = log_mass[..., None].expand(*log_mass.shape, len(kept.node_temperatures))
    return TeacherTargets(ids, values, every_node, final_hidden=None, layout=kept)


def log_rest(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The definition: log of the mass outside `ids`, relative to the largest logit, floored."""
    relative = (logits.double() - logits.max(-1, keepdim=True).values.double()) / temperature
    return relative.scatter(-1, ids, -torch.inf).logsumexp(-1).clamp(min=LOG_MASS_FLOOR)


def make_case(
    *,
    seed: int = 0,
    rows: int = 3,
    length: int = 5,
    width: int = 8,
    vocab: int = 40,
    teacher_scale: float = 3.0,
    student_scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    mask = torch.rand(rows, length, generator=random) < 0.7
    mask[0, 0] = True
    return Case(
        hidden=normal(rows, length, width).to(dtype).requires_grad_(),
        head=FrozenHead((student_scale * normal(vocab, width)).to(dtype), normal(vocab).to(dtype)),
        labels=torch.randint(0, vocab, (rows, length), generator=random),
        mask=mask,
        # bf16 logits are exact in float32, so that rounding of the stored values is not what a test measures.
        teacher=(teacher_scale * normal(rows, length, vocab)).bfloat16().to(dtype),
        hidden_mean=normal(rows, length, width).float(),
    )


def naive_kl(case: Case, top_k: int, temperature: float) -> Tensor:
    """KL over the kept entries and one bucket, from whole probability vectors in float64."""
    hidden, weight = case.hidden.double(), case.head.weight.double()
    bias = 0.0 if case.head.bias is None else case.head.bias.double()
    q = torch.softmax((hidden @ weight.T + bias) / temperature, -1)
    p = torch.softmax(case.teacher.double() / temperature, -1)
    kept = torch.zeros_like(p).scatter(-1, case.teacher.topk(top_k, dim=-1).indices, 1.0).bool()
    per_position = torch.where(kept, torch.xlogy(p, p / q), 0.0).sum(-1)
    if top_k < p.shape[-1]:
        p_rest, q_rest = (torch.where(kept, 0.0, x).sum(-1) for x in (p, q))
        per_position = per_position + torch.xlogy(p_rest, p_rest / q_rest)
    return per_position[case.mask].sum()


def gradient(case: Case, value: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, case.hidden, retain_graph=True)
    return found.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int, float]:
    vocab = draw(st.integers(2, 60))
    case = make_case(
        seed=draw(st.integers(0, 2**31)),
        vocab=vocab,
        teacher_scale=draw(st.sampled_from([0.0, 0.3, 3.0, 30.0])),
        student_scale=draw(st.sampled_from([0.0, 0.3, 1.0, 5.0])),
    )
    return case, draw(st.integers(1, vocab)), draw(st.sampled_from([1.0, 1.1, 1.5, 2.0]))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_bucketed_kl_equals_its_definition(drawn: tuple[Case, int, float]) -> None:
    case, top_k, temperature = drawn
    found, expected = case.sums(top_k, temperature).kl, naive_kl(case, top_k, temperature)
    # Log-mass is stored in float32: 4e-6 at worst for values up to 60.
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(gradient(case, found), gradient(case, expected), rtol=1e-5, atol=1e-5)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_dense_targets_equal_online_distillation_in_float64(drawn: tuple[Case, int, float]) -> None:
    case, _, temperature = drawn
    found, expected = case.sums(len(case.head.weight), temperature), case.dense(temperature)
    for name in ("cross_entropy", "kl", "frobenius"):
        value, online = getattr(found, name), getattr(expected, name)
        assert torch.allclose(value, online, rtol=1e-12, atol=1e-12), name
        assert torch.allclose(gradient(case, value), gradient(case, online), rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("temperature", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("teacher_scale", [0.5, 3.0, 10.0])
def test_dense_targets_equal_online_distillation_in_float32(temperature: float, teacher_scale: float) -> None:
    case = make_case(vocab=3000, width=32, teacher_scale=teacher_scale, dtype=torch.float32)
    found, expected = case.sums(3000, temperature), case.dense(temperature)
    coefficients = Coefficients(alpha=0.8, temperature=temperature, beta=0.1)
    losses = [total_loss(sums, coefficients, GlobalCounts(tokens=7, sequences=3)) for sums in (found, expected)]
    assert losses[0].dtype == torch.float32
    assert relative_error(*losses) < 1e-5
    assert relative_error(*(gradient(case, loss) for loss in losses)) < 1e-5
    assert relative_error(found.kl, expected.kl) < 1e-5
    assert relative_error(gradient(case, found.kl), gradient(case, expected.kl)) < 1e-5


@pytest.mark.parametrize("top_k", [1, 8, 64])
def test_float32_agrees_with_float64(top_k: int) -> None:
    exact = make_case(vocab=500, width=16)
    single = replace(
        exact,
        hidden=exact.hidden.detach().float().requires_grad_(),
        head=FrozenHead(exact.head.weight.float()),
        teacher=exact.teacher.float(),
    )
    exact = replace(
        exact,
        hidden=single.hidden.detach().double().requires_grad_(),
        head=FrozenHead(single.head.weight.double()),
    )
    found, expected = single.sums(top_k, 1.3), exact.sums(top_k, 1.3)
    for name in ("cross_entropy", "kl", "frobenius"):
        value, reference = getattr(found, name), getattr(expected, name)
        assert relative_error(value, reference) < 2e-6, name
        assert relative_error(gradient(single, value), gradient(exact, reference)) < 2e-6, name


def test_gradients_pass_gradcheck() -> None:
    case = make_case(rows=2, length=3, width=3, vocab=7)

    def loss(hidden: Tensor) -> Tensor:
        sums = replace(case, hidden=hidden).sums(3, 1.4, chunk_tokens=2)
        return total_loss(sums, Coefficients(0.6, 1.4, 0.2), GlobalCounts(tokens=5, sequences=2))

    assert torch.autograd.gradcheck(loss, (case.hidden,))


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 1000])
def test_chunks_change_nothing(chunk_tokens: int) -> None:
    case = make_case()
    found, whole = case.sums(6, 1.5, chunk_tokens=chunk_tokens), case.sums(6, 1.5)
    assert torch.allclose(found.cross_entropy, whole.cross_entropy, rtol=1e-13)
    assert torch.allclose(found.kl, whole.kl, rtol=1e-13)
    assert torch.allclose(gradient(case, found.kl), gradient(case, whole.kl), rtol=1e-12, atol=1e-14)


class _LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        self.numel = max([self.numel, *(x.numel() for x in outputs if isinstance(x, Tensor))])
        return result


def test_logits_exist_for_one_chunk_at_a_time() -> None:
    case = make_case(rows=8, length=32, vocab=400)
    targets = case.targets(4, 1.5)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with _LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = case.sums_of(targets, 1.5, chunk_tokens=10)
        kept = sum(saved)
        (sums.cross_entropy + sums.kl).backward()
    assert case.mask.sum() > 100
    assert kept < 10 * 10 * 400
    assert largest.numel == 10 * 400


@pytest.mark.parametrize("norm", ["sequence", "batch"])
def test_masked_positions_count_for_nothing(norm: FrobeniusNorm) -> None:
    case = make_case()
    targets = case.targets(6, 1.5)
    masked = ~case.mask
    hidden = torch.where(masked[..., None], torch.full_like(case.hidden, 50.0), case.hidden)
    spoiled = replace(
        case,
        hidden=hidden.detach().requires_grad_(),
        labels=case.labels.masked_fill(masked, 0),
        teacher=case.teacher.masked_fill(masked[..., None], 0.0),
        hidden_mean=case.hidden_mean.masked_fill(masked[..., None], -9.0),
    )
    found, expected = (x.sums(6, 1.5, frobenius=FrobeniusTerm(norm)) for x in (spoiled, case))
    for name in ("cross_entropy", "kl", "frobenius"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert torch.all(gradient(spoiled, getattr(found, name))[masked] == 0), name
    assert targets.ids.shape == (3, 5, 6)


def test_frobenius_is_a_root_mean_square_per_sequence_or_per_batch() -> None:
    case = make_case()
    rms, squares, count = [], 0.0, 0
    for row in range(3):
        difference = (case.hidden_mean.double() - case.hidden)[row][case.mask[row]]
        rms.append(difference.square().mean().sqrt())
        squares, count = squares + difference.square().sum(), count + difference.numel()
    assert torch.allclose(case.sums(6, 1.0).frobenius, torch.stack(rms).sum())
    batch = case.sums(6, 1.0, frobenius=FrobeniusTerm("batch")).frobenius
    assert torch.allclose(batch, 3 * (squares / count) ** 0.5)


@pytest.mark.parametrize("norm", ["sequence", "batch"])
def test_frobenius_of_equal_states_has_a_gradient_of_zero(norm: FrobeniusNorm) -> None:
    case = make_case()
    case = replace(case, hidden=case.hidden_mean.double().requires_grad_())
    found = case.sums(6, 1.0, frobenius=FrobeniusTerm(norm)).frobenius
    assert found == 0
    assert torch.all(gradient(case, found) == 0)


def test_a_micro_batch_without_valid_positions_goes_backward() -> None:
    case = make_case()
    case = replace(case, mask=torch.zeros_like(case.mask))
    sums = case.sums(6, 1.5)
    loss = total_loss(sums, Coefficients(0.5, 1.5, 0.1), GlobalCounts(tokens=12, sequences=3))
    assert loss == 0
    assert torch.all(gradient(case, loss) == 0)


def test_unused_places_are_skipped() -> None:
    case = make_case()
    values, ids = case.teacher.topk(6, dim=-1)
    log_mass = log_rest(case.teacher, ids, 1.5).float()
    targets = sparse_targets(ids, values.float(), log_mass)
    wider = sparse_targets(
        torch.cat([ids, torch.zeros_like(ids[..., :2])], -1),
        torch.cat([values, torch.full_like(values[..., :2], -torch.inf)], -1).float(),
        log_mass,
    )

    def kl(given: TeacherTargets) -> Tensor:
        return case.sums_of(given, 1.5).kl

    assert torch.allclose(kl(wider), kl(targets), rtol=1e-13)
    assert torch.allclose(gradient(case, kl(wider)), gradient(case, kl(targets)), rtol=1e-12, atol=1e-14)


def test_the_rest_of_a_student_sure_of_a_kept_token_keeps_its_gradient() -> None:
    """1 - Σ q_kept is 0 in float32 here, and its logarithm's gradient would be lost."""
    head = FrozenHead(torch.tensor([[60.0], [0.0], [1.0], [-1.0]]))
    hidden = torch.ones(1, 1, 1, requires_grad=True)
    targets = sparse_targets(torch.tensor([[[0]]]), torch.zeros(1, 1, 1), torch.log(torch.tensor([[0.25]])))
    sums = distillation_loss_sums(
        hidden,
        head,
        batch_of(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), targets),
        temperature=1.0,
    )
    sums.kl.backward()
    rest = torch.log(torch.exp(torch.tensor([0.0, 1.0, -1.0])).sum())
    assert torch.allclose(
        sums.kl, 0.8 * torch.log(torch.tensor(0.8)) + 0.2 * (torch.log(torch.tensor(0.2)) - rest + 60)
    )
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, torch.tensor(0.2 * (60 - 0.5752104)), rtol=1e-5)


def test_padded_columns_of_the_teacher_stay_out_of_online_distillation() -> None:
    case = make_case()
    padded = replace(case, teacher=torch.cat([case.teacher, torch.full((3, 5, 8), 1e4)], -1))
    assert torch.equal(padded.dense(1.5).kl, case.dense(1.5).kl)


@pytest.mark.parametrize("temperature", [1.0, 1.2, 1.6, 2.0])
def test_interpolated_log_mass_gives_the_kl_of_the_exact_one(temperature: float) -> None:
    case = make_case(vocab=400)
    values, ids = case.teacher.topk(16, dim=-1)
    kept = layout(16)
    stored = torch.stack([log_rest(case.teacher, ids, node) for node in kept.node_temperatures], -1)
    targets = TeacherTargets(ids, values.float(), stored.float(), final_hidden=None, layout=kept)
    found = case.sums_of(targets, temperature)
    assert relative_error(found.kl, case.sums(16, temperature).kl) < 1e-3


def test_total_loss_weighs_terms_as_the_paper_does() -> None:
    sums = LossSums(torch.tensor(10.0), torch.tensor(4.0), torch.tensor(6.0))
    loss = total_loss(sums, Coefficients(alpha=0.6, temperature=1.5, beta=0.1), GlobalCounts(tokens=20, sequences=4))
    assert float(loss) == pytest.approx((0.3 * 10 + 0.6 * 2.25 * 4) / 20 + 0.1 * 6 / 4)
