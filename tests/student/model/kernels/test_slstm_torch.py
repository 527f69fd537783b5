"""The recurrence step by step as its equations are written."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from student.model.kernels.slstm_torch import CHUNK, backward, forward
from tests.helpers.slstm_cases import Sequence, results


def test_the_number_of_threads_is_kept() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results(Sequence(batch=1, length=3, heads=1, head_dim=2), "torch")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def by_steps(inputs: Tensor, kernel: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`student.model.kernels.slstm`'s equations for one row and one head; (T, 4, D), (4 D, D), (4, D), (4, D)."""
    h, c, n, m = state
    outputs = []
    for x in inputs:
        i, f, z, o = x + (kernel @ h).view(4, -1) + bias
        kept = m + logsigmoid(f)
        m = torch.where(n == 0, i, torch.maximum(i, kept))
        iota, phi = torch.exp(i - m), torch.exp(torch.minimum(kept - m, torch.zeros_like(m)))
        c, n = phi * c + iota * torch.tanh(z), phi * n + iota
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    return torch.stack(outputs), torch.stack([h, c, n, m])


def test_values_and_gradients_are_those_of_the_equations() -> None:
    """Over more steps than backward takes at once, from an empty state, with the final state's gradient too."""
    random = torch.Generator().manual_seed(0)
    length, size = CHUNK + 5, 3
    inputs, bias = torch.randn(length, 4, size, generator=random), torch.randn(4, size, generator=random)
    kernel, state = torch.randn(4 * size, size, generator=random), torch.zeros(4, size)
    inputs, bias, kernel, state = (x.double().requires_grad_() for x in (inputs, bias, kernel, state))
    arguments = inputs[None, :, :, None], kernel[None], bias[:, None], state[:, None, None]
    with torch.no_grad():
        hidden, final, saved = forward(*arguments, None)
    expected, expected_final = by_steps(inputs, kernel, bias, state)
    assert torch.allclose(hidden[0, :, 0], expected, atol=1e-12)
    assert torch.allclose(final[:, 0, 0], expected_final, atol=1e-12)
    d_hidden = torch.randn(hidden.shape, generator=random).double()
    d_final = torch.randn(final.shape, generator=random).double()
    with torch.no_grad():
        d_inputs, d_state = backward(saved, None, d_hidden, d_final)
    total = (expected * d_hidden[0, :, 0]).sum() + (expected_final * d_final[:, 0, 0]).sum()
    wanted, wanted_state = torch.autograd.grad(total, [inputs, state])
    assert torch.allclose(d_inputs[0, :, :, 0], wanted, atol=1e-10)
    assert torch.allclose(d_state[0, 0, 0], wanted_state[0], atol=1e-10)
