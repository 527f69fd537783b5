"""A factor and a soft cap: as defined, with their gradient, in place and not."""

import pytest
import torch
from pydantic import ValidationError

from delta_common.logits.transform import BLOCK, LogitTransform

CAPPED, SCALED, BOTH = LogitTransform(cap=3.0), LogitTransform(scale=0.25), LogitTransform(scale=0.5, cap=2.0)
EVERY = pytest.mark.parametrize("transform", [CAPPED, SCALED, BOTH], ids=["capped", "scaled", "both"])


def logits(rows: int = 7, vocab: int = 11) -> torch.Tensor:
    return 5 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_what_gemma_and_granite_do() -> None:
    z = logits()
    assert torch.allclose(CAPPED.of(z), torch.tanh(z / 3) * 3, rtol=1e-14)
    assert torch.allclose(SCALED.of(z), z / 4, rtol=1e-14)
    assert torch.allclose(BOTH.of(z), torch.tanh(z * 0.5 / 2) * 2, rtol=1e-14)


@EVERY
def test_in_place_it_is_the_same_with_autograds_gradient(
    transform: LogitTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLOCK, "cpu", 25)
    z, above = logits().requires_grad_(), torch.randn(7, 11, dtype=torch.float64)
    (expected,) = torch.autograd.grad(transform.of(z), z, above)
    found, slope = z.detach().clone(), None if transform.cap is None else torch.empty(7, 11, dtype=torch.float64)
    transform.write(found, slope)
    assert torch.equal(found, transform.of(z).detach())
    gradient = above.clone()
    transform.write_gradient(gradient, slope)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-15)


@EVERY
def test_in_16_bits_it_is_rounded_once(transform: LogitTransform) -> None:
    z = logits().bfloat16()
    exact = transform.of(z.double()).bfloat16()
    assert torch.equal(transform.of(z), exact)
    transform.write(z)
    assert torch.equal(z, exact)


@pytest.mark.parametrize("fields", [{"scale": 0.0}, {"scale": -1.0}, {"cap": 0.0}, {"cap": float("inf")}, {"bias": 1}])
def test_what_is_no_transform_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LogitTransform.model_validate(fields)
