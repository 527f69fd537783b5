"""Stored numbers are finite: a teacher that overflows stops the build."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError
from teacher_cache.format.codec import widen_bfloat16
from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.states import drawn_phases, kept_positions

LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def require_finite(manifest: Manifest, name: str, stored: NDArray[Any], rows: range) -> None:
    """Raise `UserError` naming row, position and remedy if a number of `stored` is not finite.

    `stored` (B, P, ...) is the part of array `name` that belongs to `rows`. Unused entries of `logits/values` may be
    -inf.
    """
    if stored.dtype.kind != "f" and not _is_bfloat16(manifest, name, stored):
        return
    numbers = widen_bfloat16(stored) if stored.dtype.kind != "f" else stored
    wrong = np.isnan(numbers) | np.isposinf(numbers)
    if name != "logits/values":
        wrong |= np.isneginf(numbers)
    if wrong.any():
        row, position = (int(index) for index in np.argwhere(wrong.any(axis=tuple(range(2, wrong.ndim))))[0])
        if name.startswith("hidden/"):
            first = drawn_phases(manifest, [rows[row]])
            position = int(kept_positions(manifest.hidden, manifest.seq_len, first)[0, position])
        raise UserError(_message(manifest, name, rows[row], position, overflowed=not np.isnan(numbers).any()))


def _is_bfloat16(manifest: Manifest, name: str, stored: NDArray[Any]) -> bool:
    """Whether the array holds the bits of bfloat16 as 16-bit integers, as lossless states are stored."""
    return (
        stored.dtype == np.uint16 and manifest.teacher.dtype == "bfloat16" and name in ("hidden/mean", "exact/hidden")
    )


def _message(manifest: Manifest, name: str, row: int, position: int, *, overflowed: bool) -> str:
    where = f"row {row}, position {position}"
    begun = "finished shards are kept, but belong to these settings: build into another --out"
    if overflowed and name == "logits/values" and manifest.targets.value_dtype == "float16":
        return (
            f"targets.value_dtype float16: a logit of the teacher is above {LARGEST_FLOAT16:,.0f} at {where}; "
            f"set targets.value_dtype to float32; {begun}"
        )
    remedy = "bfloat16 or float32" if manifest.teacher.dtype == "float16" else "float32"
    return (
        f"teacher.dtype {manifest.teacher.dtype}: {name} is not finite at {where}: the teacher overflows there; "
        f"set teacher.dtype to {remedy}; {begun}"
    )
