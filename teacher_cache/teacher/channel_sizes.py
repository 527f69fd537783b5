"""How large the channels of a teacher's averaged hidden states are, over a little text."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.device import to_device
from teacher_cache.teacher.model import Teacher

ROWS_AT_ONCE = 8


@torch.inference_mode()
def channel_rms(
    teacher: Teacher, tokens: Tensor, counted: Tensor, document_start: Tensor | None = None
) -> NDArray[np.float64]:
    """RMS (d,) of each channel over the positions of tokens (B, T) where counted (B, T) is true; 0 if none is.

    `document_start` (B, T) is given where a position sees its own document only.
    """
    squares = torch.zeros(teacher.hidden_size, dtype=torch.float64)
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        starts = None if document_start is None else document_start[rows]
        states = teacher.states(tokens[rows], mean=True, document_start=starts).mean
        assert states is not None
        squares += states[to_device(counted[rows], teacher.device)].double().square().sum(0).cpu()
    rms: NDArray[np.float64] = (squares / counted.sum().clamp(min=1)).sqrt().numpy()
    return rms
