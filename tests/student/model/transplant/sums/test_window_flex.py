"""The window through FlexAttention against the one in bands, the values of both sums."""

import pytest
import torch

from student.model.transplant.mixing import places
from student.model.transplant.sums import window_flex
from student.model.transplant.sums.naive import window as naive_window
from student.model.transplant.sums.weighted import mean
from student.model.transplant.sums.window import WindowInputs, chunk_size, sinks_by_chunk
from tests.helpers.transplants import starts_at

LENGTH, SIZE, SINKS = 20, 6, 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_seen_is_what_the_twin_sees() -> None:
    """Traced and run as it is. Gradients, which torch has on a GPU only, are in tests/gpu/test_recurrence_gpu.py."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, LENGTH, 4, generator=random) for heads in (4, 2, 2))
    place = places(starts_at(LENGTH, [9, 10], [0, 4]), torch.zeros(2, dtype=torch.long), LENGTH)
    run = torch.compile(window_flex.window, backend="eager")
    found = run(q, k, v, window_flex.block_mask(place, SIZE, SINKS), 0.4)
    nothing = torch.zeros(2, 2, SIZE, 4)
    chunk = chunk_size(SIZE, LENGTH)
    sinks = [sinks_by_chunk(x, nothing[:, :, :SINKS], place, chunk) for x in (k, v)]
    behind = (torch.cat([nothing, x], dim=2) for x in (k, v))
    expected = naive_window(WindowInputs(q, *behind, q, *sinks, place), SIZE, 0.4)
    assert torch.allclose(mean(found), mean(expected), atol=1e-5)
    assert torch.allclose(found.weight.log() + found.log_scale, expected.weight.log(), atol=1e-5)
