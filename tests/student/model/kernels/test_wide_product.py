"""Products added up in float32 against those of wide factors."""

import pytest
import torch

from student.model.kernels.wide_product import wide_product


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_wide_factors(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=random).to(dtype).requires_grad_() for shape in ((2, 5, 300), (4, 300)))
    wide = torch.promote_types(dtype, torch.float32)
    found, expected = wide_product(x, weight), x.to(wide) @ weight.to(wide).T
    assert found.dtype == wide
    assert torch.equal(found, expected)
    upstream = torch.randn(2, 5, 4, generator=random).to(dtype).to(wide)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, weight), upstream) for y in (found, expected)), strict=True):
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), theirs.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_bfloat16_alone_would_round_the_sum() -> None:
    x, weight = torch.ones(1, 300, dtype=torch.bfloat16), torch.ones(1, 300, dtype=torch.bfloat16)
    weight[0, 0] = 0.25
    assert wide_product(x, weight).item() == 299.25
    assert (x @ weight.T).item() != 299.25
