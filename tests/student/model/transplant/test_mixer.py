"""The mixer as a whole: values and gradients against its naive kernels in float64, documents, its first weights."""

import pytest
import torch
from torch import Tensor

from student.model.transplant.body import body_tensors
from student.model.transplant.families import Rotary, rotated
from student.model.transplant.mixer import Mixer
from student.model.transplant.mixing import Mixing, mixing_of
from student.model.transplant.options import HYBRID, TRANSPLANT, MixerShape
from student.model.transplant.student import build_transplant
from tests.helpers.transplants import (
    SHAPES,
    WIDTH,
    frozen_of,
    small_config,
    small_teacher,
    small_transplant,
    starts_at,
)

LENGTH = 30


def _mixer(name: str, kernels: str, family: str = "qwen3") -> tuple[Mixer, Rotary]:
    student = small_transplant(name, family, kernels=kernels)
    return student.layers[1].self_attn, student.rotary


def _mixing(mixer: Mixer, rotary: Rotary, starts: Tensor | None, like: Tensor) -> Mixing:
    return mixing_of(mixer.shape, rotary, starts, None, size=like.shape[:2], like=like, want_state=False)


def _input(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(3)).double().requires_grad_()


@pytest.mark.parametrize("starts", [None, starts_at(LENGTH, [4, 5, 17], [0, 29])])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_the_naive_kernels(name: str, family: str, starts: Tensor | None) -> None:
    x, found = _input(), []
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).double()
    for kernels in ("auto", "naive"):
        mixer, rotary = _mixer(name, kernels, family)
        y = mixer(x, mixing=_mixing(mixer, rotary, starts, x))[0]
        leaves = [x, *mixer.parameters()]
        found.append([y, *torch.autograd.grad((y * upstream).sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10 * max(1.0, float(theirs.detach().abs().max())))


@pytest.mark.parametrize("name", SHAPES)
def test_every_weight_takes_part(name: str) -> None:
    """Gradients of zero everywhere would make the test above pass."""
    mixer, rotary = _mixer(name, "auto", "qwen2")
    x = _input()
    y = mixer(x, mixing=_mixing(mixer, rotary, None, x))[0]
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).double()
    names, weights = zip(*mixer.named_parameters(), strict=True)
    gradients = torch.autograd.grad((y * upstream).sum(), weights)
    assert {name for name, g in zip(names, gradients, strict=True) if g.abs().max() < 1e-9} == set()


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_later_is_seen(name: str) -> None:
    mixer, rotary = _mixer(name, "auto")
    x = _input().detach()
    changed = torch.cat([x[:, :20], x[:, 20:].flip(1)], dim=1)
    first, second = (mixer(row, mixing=_mixing(mixer, rotary, None, row))[0] for row in (x, changed))
    assert torch.equal(first[:, :20], second[:, :20])
    assert not torch.allclose(first[:, 20:], second[:, 20:])


def test_what_left_the_window_is_still_seen_through_the_recurrence() -> None:
    mixer, rotary = _mixer("hybrid", "auto")
    x = _input().detach()
    changed = x.clone()
    changed[:, 3] += 1
    first, second = (mixer(row, mixing=_mixing(mixer, rotary, None, row))[0] for row in (x, changed))
    assert (first[:, 20:] - second[:, 20:]).abs().max() > 1e-6


def test_16_bits_are_near_float64() -> None:
    for name in SHAPES:
        mixer, rotary = _mixer(name, "auto")
        x = _input().detach()
        exact = mixer(x, mixing=_mixing(mixer, rotary, None, x))[0]
        narrow = x.bfloat16()
        found = mixer.bfloat16()(narrow, mixing=_mixing(mixer, rotary, None, narrow))[0]
        assert found.dtype == torch.bfloat16
        assert (found - exact).abs().max() < 2**-4 * exact.abs().max()


@pytest.mark.parametrize("shape", [TRANSPLANT, HYBRID])
def test_first_weights_keep_what_the_head_has_and_forget_at_many_speeds(shape: MixerShape) -> None:
    teacher = small_teacher()
    student = build_transplant(small_config("llama"), frozen_of(teacher), body_tensors(teacher), shape, seed=1)
    mixer: Mixer = student.layers[2].self_attn
    assert torch.equal(mixer.k_proj.weight, teacher.model.layers[2].self_attn.k_proj.weight)
    assert torch.equal(mixer.q_features[:, :, :8], torch.eye(8).repeat(4, 1, 1))
    assert torch.allclose(mixer.q_features[:, :, 8:].norm(dim=1), torch.ones(4, 8))
    assert torch.allclose(mixer.forget_gate.bias, torch.tensor([2, 10 / 3, 14 / 3, 6]))
    if shape.convolution:
        x = _input().detach().float()
        heads = mixer.project(x)
        convolved, _ = mixer._convolved(heads, _mixing(mixer, student.rotary, None, x), {})
        assert all(torch.equal(a, b) for a, b in zip(heads, convolved, strict=True))


def _features(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([(x @ weight).softmax(-1), (-x @ weight).softmax(-1)], dim=-1)


def _decays(log_forget: Tensor, begin: int, end: int) -> Tensor:
    """Sum of (H, T) over begin .. end - 1."""
    return log_forget[:, begin:end].sum(-1)


def _gates(mixer: Mixer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of input and forget gates, (B, H, T)."""
    i, f = (mixer.input_gate(x), mixer.forget_gate(x))
    return i.transpose(1, 2), torch.nn.functional.logsigmoid(f).transpose(1, 2)


@torch.no_grad()
def test_hybrid_is_one_softmax_over_window_sinks_and_what_is_behind_them() -> None:
    """Written out for one document, position by position: every position is weighted once."""
    mixer, rotary = _mixer("hybrid", "auto")
    x, window, sinks = _input()[:1].detach(), mixer.shape.window, mixer.shape.sinks
    mixing = _mixing(mixer, rotary, None, x)
    q, k, v = (mixer._for_each_head(part)[0] if part.shape[1] == 2 else part[0] for part in mixer.project(x))
    angles = rotary.angles(mixing.place, x.dtype)
    turned_q, turned_k = rotated(q[None], angles)[0], rotated(k[None], angles)[0]
    i, log_forget = (gate[0] for gate in _gates(mixer, x))
    share = torch.nn.functional.linear(x[0], mixer.share.weight, mixer.share.bias).T
    fq, fk = _features(q, mixer.q_features), _features(k, mixer.k_features)
    rows = []
    for t in range(LENGTH):
        weights = []
        for j in range(t + 1):
            if t - j < window or j < sinks:
                weights.append(torch.exp((turned_q[:, t] * turned_k[:, j]).sum(-1) * mixer.scaling))
            else:
                gates = i[:, j] + _decays(log_forget, j + 1, t - window + 1) + share[:, t]
                weights.append((fq[:, t] * fk[:, j]).sum(-1) * torch.exp(gates))
        w = torch.stack(weights, dim=-1)
        rows.append((w / w.sum(-1, keepdim=True))[:, None] @ v[:, : t + 1])
    expected = mixer.o_proj(torch.cat(rows, dim=1).transpose(0, 1).flatten(1))
    assert torch.allclose(mixer(x, mixing=mixing)[0][0], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_transplant_is_one_mean_over_the_recurrence_and_the_lags() -> None:
    """Written out for one document, with the convolution's own forward."""
    mixer, rotary = _mixer("transplant", "auto")
    x = _input()[:1].detach()
    mixing = _mixing(mixer, rotary, None, x)
    flat = torch.cat([part.transpose(1, 2).flatten(2) for part in mixer.project(x)], dim=-1)
    parts = mixer.convolution(flat)[0].split([32, 16, 16], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(0, 1) for part in parts)
    k, v = (part.repeat_interleave(2, dim=0) for part in (k, v))
    i, log_forget = (gate[0] for gate in _gates(mixer, x))
    lags = torch.nn.functional.linear(x[0], mixer.lags.weight, mixer.lags.bias).unflatten(-1, (4, -1))
    fq, fk = _features(q, mixer.q_features), _features(k, mixer.k_features)
    rows = []
    for t in range(LENGTH):
        weights = [
            (fq[:, t] * fk[:, j]).sum(-1) * torch.exp(i[:, j] + _decays(log_forget, j + 1, t + 1)) for j in range(t + 1)
        ]
        for lag in range(min(t + 1, mixer.shape.lags)):
            weights[t - lag] = weights[t - lag] + torch.exp(lags[t, :, lag])
        w = torch.stack(weights, dim=-1)
        rows.append((w / w.sum(-1, keepdim=True))[:, None] @ v[:, : t + 1])
    expected = mixer.o_proj(torch.cat(rows, dim=1).transpose(0, 1).flatten(1))
    assert torch.allclose(mixer(x, mixing=mixing)[0][0], expected, rtol=0, atol=1e-10)
