"""Refuses teachers that do not keep the documents packed in a row apart."""

import torch

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
    for row, cut in enumerate(cuts):
        alone = teacher.states(probe[row : row + 1, cut:], mean=False, recorded=False).final[0].float()
        if not torch.allclose(packed[row, cut:], alone, rtol=TOLERANCE, atol=TOLERANCE * float(alone.abs().max())):
            raise _refusal(settings, batch_size)


def _refusal(settings: TeacherSettings, batch_size: int) -> UserError:
    remedy = ", or compute.batch_size to 1" if batch_size > 1 else ""
    return UserError(
        f"rows.context document: teacher {settings.model} with attention {settings.attention} does not keep documents "
        f"in a row apart in batches of {batch_size}; set rows.context to row, or teacher.attention to sdpa{remedy}"
    )
