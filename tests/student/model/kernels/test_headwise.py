"""What is done head by head against the modules of xlstm: values and gradients."""

import torch
from torch import Tensor

from student.model.kernels.headwise import normalise_heads, project_heads
from tests.helpers.documents import assert_same_gradients
from tests.helpers.small_students import small_student


def _inputs(length: int, features: int) -> Tensor:
    random = torch.Generator().manual_seed(length)
    return torch.randn(2, length, features, generator=random).double().requires_grad_()


def test_what_is_done_head_by_head_is_xlstms() -> None:
    layer = small_student().double().stack.blocks[1].xlstm
    x = _inputs(7, layer.q_proj.weight.shape[0] * 8)
    found, expected = project_heads(layer.q_proj, x), layer.q_proj(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert_same_gradients(found, expected, [x, layer.q_proj.weight])
    norm, h = layer.mlstm_cell.outnorm, x.unflatten(-1, (4, -1)).transpose(1, 2)
    found, expected = normalise_heads(norm, h), norm(h).transpose(1, 2).flatten(2)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert_same_gradients(found, expected, [x, norm.weight])
