"""Whether the teacher agrees with a cache: some rows are computed again, and once more in another batch shape.

Two runs of one teacher differ by rounding when their batches have different shapes. That difference is the control:
cached values may differ from a run by little more than one run differs from the other. A teacher whose matrices were
cut added up parts of its products, so for its cache a run that does so is another control.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from delta_common.errors import UserError
from teacher_cache.build.compute import batches, compute_batch
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import TeacherSettings
from teacher_cache.targets.states import drawn_of_rows
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher
from teacher_cache.verify.objects import Fault, Findings

CONTROL_FACTOR = 3.0
"""A mean difference more than this many times the control's is not rounding."""


@dataclass(frozen=True)
class Distance:
    """Mean absolute differences: cached from recomputed values, and those from values of another batch shape."""

    cached: float
    control: float
    rounding: float
    """One unit in the last place of the teacher's dtype at the values' mean size; allowed even where `control` is 0."""

    @property
    def is_sound(self) -> bool:
        return self.cached <= CONTROL_FACTOR * self.control + self.rounding


def verify_teacher(cache: Cache, findings: Findings, *, model: str | None, rows: int) -> None:
    """Run the teacher over about `rows` cached rows and add what differs from the cache to `findings`.

    `model` is the folder or name of the teacher, if it is no longer what the manifest says. Raises `UserError` when it
    cannot be loaded.
    """
    teacher = load_teacher(_settings(cache, model))
    if teacher.identity().weights_sha256 != cache.manifest.teacher.weights_sha256:
        findings.faults.append(Fault("teacher", "teacher", None, "its weights are not those that made the cache"))
        return
    found: dict[str, list[Distance]] = {}
    for batch in _batches(cache, rows):
        for name, distance in _distances(cache, teacher, batch).items():
            found.setdefault(name, []).append(distance)
    for name, several in found.items():
        mean = Distance(*(float(np.mean([getattr(d, part) for d in several])) for part in vars(several[0])))
        findings.measures[f"teacher/{name}"] = vars(mean)
        if not mean.is_sound:
            words = f"off by {mean.cached:.3g} from the teacher, whose own runs differ by {mean.control:.3g}"
            findings.faults.append(Fault("teacher", name, None, words))


def _settings(cache: Cache, model: str | None) -> TeacherSettings:
    teacher = cache.manifest.teacher
    if teacher.model_type == "synthetic":
        raise UserError(f"{cache.path}: a synthetic cache, there is no teacher to run; leave --teacher out")
    # A teacher that was cut runs on as many GPUs where they are, layer by layer, and else on one device.
    parallel = int(cache.manifest.compute.get("parallel", 1))
    return TeacherSettings.model_validate(
        {
            "model": model or teacher.name,
            "revision": teacher.revision,
            "dtype": teacher.dtype,
            "attention": teacher.attention,
            "compile": cache.manifest.compute.get("compiled", False),
            "parallel": parallel if torch.cuda.device_count() >= parallel else 1,
        }
    )


def _batches(cache: Cache, rows: int) -> list[range]:
    """Batches as the build had them, spread over the cache: computed in the same shape they are bit-identical."""
    size = int(cache.manifest.compute.get("batch_size", 1))
    every = [
        range(shard.start + part.start, shard.start + part.stop)
        for shard in cache.shards
        for part in batches(len(shard), size)
    ]
    wanted = min(len(every), max(1, rows // size))
    return [every[int(place)] for place in np.linspace(0, len(every) - 1, wanted)]


def _distances(cache: Cache, teacher: Teacher, rows: range) -> dict[str, Distance]:
    cached = cache.rows(rows)
    live = _recompute(cache, teacher, rows, len(rows))
    controls = _controls(cache, teacher, rows)
    unit = torch.finfo(getattr(torch, cache.manifest.teacher.dtype)).eps
    distances = {}
    for name in ("values", "log_mass", "final_hidden", "hidden_mean"):
        one, two, *others = (_compared(found, name, cache.manifest.top_k) for found in (cached, live, *controls))
        if one is not None and two is not None:
            control = max(_mean_difference(other, two) for other in others if other is not None)
            distances[name] = Distance(_mean_difference(one, two), control, unit * float(np.abs(two).mean()))
    return distances


def _controls(cache: Cache, teacher: Teacher, rows: range) -> list[CachedRows]:
    """The rows of other runs of the teacher: in another batch shape, and in sums of parts if its matrices were cut."""
    other_shape = _recompute(cache, teacher, rows, 1 if len(rows) > 1 else 2)
    compute = cache.manifest.compute
    if compute.get("cut") != "tensors":
        return [other_shape]
    with teacher.summed_in_parts(compute["parallel"]):
        return [other_shape, _recompute(cache, teacher, rows, len(rows))]


def _recompute(cache: Cache, teacher: Teacher, rows: range, batch_size: int) -> CachedRows:
    """Rows of the cache computed again from the cached tokens, `batch_size` at a time.

    A single row is repeated to fill a larger batch.
    """
    stored = cache.rows(rows)
    numbers = range(rows.start, rows.start + max(len(rows), batch_size))
    arrays = ShardArrays.empty(cache.manifest, numbers)
    for name in ("tokens", "document_start", "loss_mask"):
        arrays.by_name[name][:] = getattr(stored, name)
    statistics = ShardStatistics(cache.manifest.targets)
    for batch in batches(len(numbers), batch_size):
        compute_batch(teacher, arrays, batch, statistics)

    computed = arrays.by_name | drawn_of_rows(cache.manifest, numbers)
    return CachedRows(cache.manifest, computed).select(slice(len(rows)))


def _compared(rows: CachedRows, name: str, top_k: int) -> NDArray[np.float32] | None:
    """A field at counted positions, (n, …); of the logits only the top_k, which do not depend on the random draw."""
    array: NDArray[np.float32] | None = getattr(rows, name)
    if array is None:
        return None
    if name == "hidden_mean":
        return array[rows.hidden_counted]
    counted = array[rows.loss_mask]
    return counted[:, :top_k] if name == "values" else counted


def _mean_difference(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    return float(np.abs(one.astype(np.float64) - two).mean())
