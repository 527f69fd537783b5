"""A wide teacher computes what the narrow one does."""

import torch

from benchmarks.wide import WIDTH, Widening


def test_products_and_norms_of_wide_states_are_those_of_narrow_ones() -> None:
    random = torch.Generator().manual_seed(1)
    state, matrix, norm = (torch.randn(*shape, generator=random) for shape in ((576,), (64, 576), (576,)))
    widening = Widening(576, 49152)
    wide = state[widening.channels] * widening.scales
    assert len(wide) == WIDTH
    torch.testing.assert_close(wide.square().mean(), state.square().mean())
    read = widening.tensor("model.layers.0.mlp.up_proj.weight", matrix)
    torch.testing.assert_close(read @ wide, matrix @ state, rtol=1e-4, atol=1e-4)
    written = widening.tensor("model.layers.0.mlp.down_proj.weight", matrix.T)
    torch.testing.assert_close(
        written @ (read @ wide), (matrix.T @ matrix @ state)[widening.channels] * widening.scales, rtol=1e-3, atol=1e-2
    )
    final = widening.tensor("model.norm.weight", norm)
    embedded = matrix[:, widening.channels] * widening.scales
    torch.testing.assert_close(embedded @ (wide * final), matrix @ (state * norm), rtol=1e-4, atol=1e-4)
