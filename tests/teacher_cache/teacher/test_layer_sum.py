"""The sum over layers: in turn or several at once, the same to the bit."""

import pytest
import torch

from teacher_cache.teacher.layer_sum import LayerSum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_the_sum_in_float32_and_leaves_states_alone(dtype: torch.dtype) -> None:
    states = torch.randn(5, 2, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept, total = states.clone(), LayerSum()
    for state in states:
        total.add(state)
    assert total.sum().dtype == torch.float32
    assert torch.allclose(total.sum().double(), kept.double().sum(0), atol=1e-6)
    assert torch.equal(states, kept)


def test_nothing_has_no_sum() -> None:
    with pytest.raises(ValueError, match="no states"):
        LayerSum().sum()


def test_the_sum_goes_where_the_layers_are() -> None:
    total = LayerSum()
    total.add(torch.ones(2, 3))
    total.add(torch.ones(2, 3, device="meta", dtype=torch.bfloat16))
    total.add(torch.ones(2, 3, device="meta", dtype=torch.bfloat16))
    assert (total.sum().device.type, total.sum().dtype, total.sum().shape) == ("meta", torch.float32, (2, 3))
