"""Refuses teachers that do not keep the documents packed in a row apart."""

import torch
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.model import Teacher

LENGTH = 16
"""Tokens per row of the probe."""
CUTS = (9, 5)
"""Where the second document begins in each row of the probe."""
TOLERANCE = 1e-2
"""Largest difference of states that should be equal, relative to the largest state; attention across the border
changes them by far more."""
ROUNDING = 0.15
"""In 16 bits states of another batch shape may differ by so much of what attention across the border changes, on
average: single large states of odd tokens are rounded far apart. SmolLM2-135M in bfloat16 comes to 0.07."""


@torch.inference_mode()
def require_documents_apart(teacher: Teacher, settings: TeacherSettings, batch_size: int) -> None:
    """Raise `UserError` unless the second document of a row has the states it has alone, in batches of this size.

    Some attention kernels treat a batch of several rows otherwise than one row, so the probe has two rows if
    `batch_size` is above 1.
    """
    cuts = CUTS[: min(2, batch_size)]
    probe = torch.arange(LENGTH * len(cuts), device=teacher.device).view(len(cuts), LENGTH)
    probe = (probe * 7 + 3) % teacher.vocab_size
    starts = torch.zeros(probe.shape, dtype=torch.bool)
    starts[:, 0] = True
    starts[range(len(cuts)), cuts] = True
    packed = teacher.states(probe, mean=False, document_start=starts).final.float()
    together = teacher.states(probe, mean=False, recorded=False).final.float()
    for row, cut in enumerate(cuts):
        alone = teacher.states(probe[row : row + 1, cut:], mean=False, recorded=False).final[0].float()
        if not _same(packed[row, cut:], alone, together[row, cut:], rounded=settings.dtype != "float32"):
            raise _refusal(settings, batch_size)


def _same(packed: Tensor, alone: Tensor, together: Tensor, *, rounded: bool) -> bool:
    """Whether states (n, d) are those of the document alone, and not those that see the document before it."""
    if torch.allclose(packed, alone, rtol=TOLERANCE, atol=TOLERANCE * float(alone.abs().max())):
        return True
    distance, across = ((states - alone).abs().mean() for states in (packed, together))
    return rounded and bool(distance <= ROUNDING * across)


def _refusal(settings: TeacherSettings, batch_size: int) -> UserError:
    remedy = ", or compute.batch_size to 1" if batch_size > 1 else ""
    return UserError(
        f"rows.context document: teacher {settings.model} with attention {settings.attention} does not keep documents "
        f"in a row apart in batches of {batch_size}; set rows.context to row (of packed conversations, rows.mode to "
        f"document), or teacher.attention to sdpa{remedy}"
    )
