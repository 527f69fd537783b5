"""Estimates what a build will take, from a short calibration on the real teacher and text; writes nothing."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch import Tensor

from delta_common.files import expand_home
from delta_common.progress import byte_size, duration
from teacher_cache.build.compute import batches, compute_batch
from teacher_cache.build.request import make_manifest, require_fit, with_batch_size, with_compile
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.corpus.chat.template import use_template
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.format.codec import describe_arrays, encode_shard
from teacher_cache.format.manifest import Manifest, TargetLayout
from teacher_cache.settings import BuildSettings
from teacher_cache.store.base import is_url
from teacher_cache.targets import estimate
from teacher_cache.targets.keep import KeptTargets, keep_targets
from teacher_cache.teacher.load import group_of, load_teacher, serve
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.group import LeftOut, TeacherGroup

OBJECTS_BESIDE = 2
"""Objects of a shard beside its arrays: the commit record and the bookmark."""
CALIBRATION_BATCHES = 2
ERROR_POSITIONS = 256
"""Positions at which the error of the gradient is measured."""
STEP_TOKENS = 16_384
"""Tokens per optimizer step of the paper: 8 rows of 512, accumulated 4 times."""


@dataclass(frozen=True)
class Costs:
    """What was measured: per token, except the last two."""

    read: float
    """Seconds to read and tokenize."""
    compute: float
    """Seconds to run the teacher and take targets."""
    encode: float
    """Seconds to encode, in one thread beside the other work."""
    bytes_by_array: Mapping[str, float]
    load_seconds: float
    """To load the teacher, at every start."""
    teacher_bytes: int
    """Bytes of embedding, LM head and tokenizer, once per cache."""

    @property
    def stages(self) -> dict[str, float]:
        return {"reading": self.read, "teacher and targets": self.compute, "encoding": self.encode}


@dataclass(frozen=True)
class BuildEstimate:
    """A whole build by one device; n devices take an n-th of the time."""

    tokens: float
    shards: int
    objects: int
    bytes: float
    seconds: float
    """Including one start."""
    tokens_per_second: float
    bound_by: str
    """The slowest stage, which the others wait for."""
    shares: dict[str, float]
    """Each stage's share of the time of all stages."""
    write_rate: float
    """Bytes per second that the disk must take."""
    restart_seconds: float
    """What a stop costs on average: loading the teacher, and half a shard again."""

    @classmethod
    def of(cls, costs: Costs, *, tokens: float, shards: int, overlapping: bool) -> "BuildEstimate":
        """Extrapolate; `overlapping` says whether stages run side by side, as with a GPU, or share a CPU's cores."""
        stages = costs.stages
        whole = sum(stages.values())
        seconds = max(stages.values()) if overlapping else whole
        per_token = sum(costs.bytes_by_array.values())
        return cls(
            tokens=tokens,
            shards=shards,
            objects=shards * (len(costs.bytes_by_array) + OBJECTS_BESIDE),
            bytes=per_token * tokens + costs.teacher_bytes,
            seconds=seconds * tokens + costs.load_seconds,
            tokens_per_second=1 / seconds,
            bound_by=max(stages, key=lambda name: stages[name]),
            shares={name: took / whole for name, took in stages.items()},
            write_rate=per_token / seconds,
            restart_seconds=costs.load_seconds + seconds * tokens / shards / 2,
        )


@dataclass(frozen=True)
class BuildPlan:
    """A build's extent and cost, extrapolated from a few rows."""

    rows: int
    extent: BuildEstimate
    load_seconds: float
    bytes_per_token: float
    bytes_by_array: dict[str, float]
    """Per token."""
    teacher_bytes: int
    free_bytes: int | None
    mfu: float | None
    """The teacher's share of its device's matrix peak, over the whole build; None where it is not known."""
    calibration_rows: int
    bytes_per_text_token: float
    """Per token that is no padding, whether it counts or not."""
    counted: float
    """Share of the positions with a label that count."""
    padding: float
    """Share of all positions whose label is padding."""
    skipped: str
    """Conversations that give no row, as far as they were read, in words; empty where there are none."""
    gradient_error: dict[str, float]
    """By temperature: relative error, per token, of the gradient in the hidden state of a student that knows nothing (q
    uniform). It is noise: over n tokens divide it by sqrt(n). All 0 in exact mode."""

    def to_json(self) -> dict[str, Any]:
        """Every number by its name."""
        return asdict(self)


def make_plan(settings: BuildSettings, out: str | Path | None) -> BuildPlan:
    """Calibrate on the first rows of the corpus; writes nothing. Raises `UserError` and `LeftOut` as `build` would."""
    with group_of(settings.teacher) as group:
        if not group.leads:
            serve(group)
            raise LeftOut
        return _calibrated(settings, out, group)


def _calibrated(settings: BuildSettings, out: str | Path | None, group: TeacherGroup) -> BuildPlan:
    started = time.monotonic()
    teacher = load_teacher(settings.teacher, group)
    use_template(teacher.tokenizer, settings.corpus)
    load_seconds = time.monotonic() - started
    require_fit(settings, teacher)
    files = teacher.files()
    corpus_rows = CorpusRows(settings, teacher.tokenizer, teacher.tokenizer_identity())
    count = settings.rows.count or corpus_rows.count()
    settings = with_compile(with_batch_size(settings, teacher), teacher, count)
    if settings.teacher.compile:
        teacher.compile_layers()
    sample = _calibration_settings(settings, min(count, CALIBRATION_BATCHES * settings.compute.rows_at_once))
    arrays, read_seconds, compute_seconds = _compute(sample, teacher, make_manifest(sample, teacher, files))
    encode_seconds, by_key = _encode(arrays)
    positions, rows, text = int(arrays.loss_mask.sum()), len(arrays.rows), arrays.text_positions
    costs = Costs(
        read=read_seconds / positions,
        compute=compute_seconds / positions,
        encode=encode_seconds / positions,
        bytes_by_array={key.split("/c/")[0]: size / positions for key, size in by_key.items()},
        load_seconds=load_seconds,
        teacher_bytes=sum(map(len, files.values())),
    )
    shards = -(-count // settings.compute.rows_per_shard)
    overlapping = teacher.device.type == "cuda"
    extent = BuildEstimate.of(costs, tokens=positions / rows * count, shards=shards, overlapping=overlapping)
    work, seconds = teacher.matrix_work, positions / extent.tokens_per_second
    return BuildPlan(
        rows=count,
        extent=extent,
        mfu=None if work is None else work.mfu(arrays.loss_mask.size, positions, seconds),
        load_seconds=load_seconds,
        bytes_per_token=sum(costs.bytes_by_array.values()),
        bytes_by_array=dict(costs.bytes_by_array),
        teacher_bytes=costs.teacher_bytes,
        free_bytes=_free_bytes(out),
        calibration_rows=rows,
        bytes_per_text_token=sum(by_key.values()) / text,
        counted=positions / text,
        padding=1 - text / arrays.loss_mask.size,
        skipped=corpus_rows.skipped(),
        gradient_error=_gradient_errors(teacher, arrays),
    )


def _calibration_settings(settings: BuildSettings, rows: int) -> BuildSettings:
    """The settings of the same build cut down to one shard of so many rows."""
    return settings.model_copy(
        update={
            "rows": settings.rows.model_copy(update={"count": rows}),
            "compute": settings.compute.model_copy(update={"rows_per_shard": rows}),
        }
    )


def _compute(settings: BuildSettings, teacher: Teacher, manifest: Manifest) -> tuple[ShardArrays, float, float]:
    """The calibration's shard, and the seconds to read and to compute it.

    Before time is taken one row warms up, or a whole batch, for whose shape layers are compiled.
    """
    arrays = ShardArrays.empty(manifest, manifest.shard_rows(0))
    started = time.monotonic()
    arrays.put_rows(CorpusRows(settings, teacher.tokenizer, teacher.tokenizer_identity()).take(arrays.rows))
    reading = time.monotonic() - started
    warming_up = slice(0, min(len(arrays.rows), settings.compute.rows_at_once) if settings.teacher.compile else 1)
    compute_batch(teacher, arrays, warming_up, ShardStatistics(manifest.targets))
    started = time.monotonic()
    for batch in batches(len(arrays.rows), settings.compute.rows_at_once):
        compute_batch(teacher, arrays, batch, ShardStatistics(manifest.targets))
    return arrays, reading, time.monotonic() - started


def _encode(arrays: ShardArrays) -> tuple[float, dict[str, int]]:
    """Seconds to encode the shard, and the bytes of each object by key."""
    started = time.monotonic()
    objects = encode_shard(arrays.manifest, describe_arrays(arrays.manifest), 0, arrays.by_name)
    return time.monotonic() - started, {key: len(data) for key, data in objects.items()}


@torch.inference_mode()
def _gradient_errors(teacher: Teacher, arrays: ShardArrays) -> dict[str, float]:
    """`BuildPlan.gradient_error`, measured on the first `ERROR_POSITIONS` counted positions of the first row."""
    layout = arrays.manifest.targets
    low, high = min(layout.node_temperatures), max(layout.node_temperatures)
    temperatures = [low + (high - low) * step / 4 for step in range(5)]
    if layout.mode == "exact":
        return {f"{t:g}": 0.0 for t in temperatures}
    tokens = torch.from_numpy(arrays.tokens[:1].astype("int64"))
    counted = torch.from_numpy(arrays.loss_mask[0])
    final = teacher.states(tokens[:, :-1], mean=False).final[0][counted.to(teacher.device)][:ERROR_POSITIONS]
    offsets = arrays.sampling_offsets(slice(0, 1))[0][counted][: len(final)].to(teacher.device)
    missed = dict.fromkeys(temperatures, 0.0)
    whole = dict(missed)
    head = teacher.head_weight.float()
    for chunk, logits in teacher.logits_in_chunks(final):
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        kept = keep_targets(logits, labels, layout, offsets[chunk])
        for temperature in temperatures:
            error, gradient = _missed_gradient(logits.float(), kept, layout, head, temperature)
            missed[temperature] += error
            whole[temperature] += gradient
    return {f"{t:g}": math.sqrt(missed[t] / whole[t]) for t in temperatures}


def _missed_gradient(
    logits: Tensor, kept: KeptTargets, layout: TargetLayout, head: Tensor, temperature: float
) -> tuple[float, float]:
    """Sums over positions of |(p_hat - p) head|² and of |(q - p) head|², for logits (n, V), head (V, d), q uniform."""
    p = torch.softmax(logits / temperature, -1)
    weights = estimate.target_weights(kept.values, kept.log_mass, layout, temperature)
    p_hat = torch.zeros_like(p)
    if not layout.samples:  # no samples: the rest of the mass, spread evenly, as a student that knows nothing does
        p_hat += (1 - weights.sum(-1, keepdim=True)) / max(1, p.shape[1] - layout.top_k)
        p_hat.scatter_(1, kept.ids, 0.0)
    p_hat.scatter_add_(1, kept.ids, weights)
    uniform = torch.full_like(p, 1 / p.shape[1])
    missed, gradient = ((difference @ head).square().sum() for difference in (p_hat - p, uniform - p))
    return float(missed), float(gradient)


def _free_bytes(out: str | Path | None) -> int | None:
    """Free bytes on the disk that the cache would go to; None if that is no disk."""
    if out is None or is_url(out):
        return None
    place = expand_home(out).absolute()
    existing = next(folder for folder in [place, *place.parents] if folder.exists())
    return shutil.disk_usage(existing).free


def render_plan(plan: BuildPlan) -> Group:
    """The plan as tables for a terminal."""
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    extent = plan.extent
    room = "" if plan.free_bytes is None else f", {byte_size(plan.free_bytes)} free there"
    short = plan.free_bytes is not None and plan.free_bytes < extent.bytes
    shares = ", ".join(f"{name} {share:.1%}" for name, share in extent.shares.items())
    facts.add_row("rows", f"{plan.rows:,} in {extent.shards:,} shards, {extent.tokens:,.0f} counted positions")
    facts.add_row("of the positions", f"{plan.padding:.1%} are padding; {plan.counted:.1%} of the others count")
    if plan.skipped:
        facts.add_row("left out", plan.skipped)
    facts.add_row("time", f"{duration(extent.seconds)} on one device like this, {duration(plan.load_seconds)} to load")
    share = "" if plan.mfu is None else f", MFU {plan.mfu:.1%}"
    facts.add_row("speed", f"{extent.tokens_per_second:,.0f} tokens/s{share}, bound by {extent.bound_by}")
    facts.add_row("work", shares)
    both = f"{plan.bytes_per_token:.1f} bytes per counted token, {plan.bytes_per_text_token:.1f} per token"
    facts.add_row("size", f"{byte_size(extent.bytes)}{room}" + (" — TOO LITTLE" if short else "") + f"; {both}")
    facts.add_row("disk", f"{extent.objects:,} objects; {byte_size(extent.write_rate)}/s while it runs")
    facts.add_row("a restart", f"{duration(extent.restart_seconds)}: loading, and half a shard again on average")
    facts.add_row("calibrated on", f"{plan.calibration_rows} rows")
    sizes = Table("array", box=box.SIMPLE_HEAD)
    for heading in ("bytes per token", "whole"):
        sizes.add_column(heading, justify="right")
    for name, per_token in plan.bytes_by_array.items():
        sizes.add_row(name, f"{per_token:.2f}", byte_size(per_token * extent.tokens))
    sizes.add_row("teacher/", "", byte_size(plan.teacher_bytes))
    errors = Table("relative error of the KD gradient at T", *plan.gradient_error, box=box.SIMPLE_HEAD)
    errors.add_row("per token", *(f"{error:.3f}" for error in plan.gradient_error.values()))
    step = [error / math.sqrt(STEP_TOKENS) for error in plan.gradient_error.values()]
    errors.add_row(f"per step of {STEP_TOKENS:,} tokens", *(f"{error:.4f}" for error in step))
    return Group(facts, sizes, errors)
