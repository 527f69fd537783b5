"""How many devices a teacher needs and what a build on them takes, told from its configuration; loads nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from transformers import PreTrainedConfig

from delta_common.errors import UserError
from delta_common.machine.matrix_work import PEAKS
from delta_common.progress import byte_size, duration
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.parallel.fit import MOST_DEVICES, ROOM_ON_GPU, Cut, TeacherSize, teacher_size

ROWS_TRIED = 8
"""Rows of a batch where its size is left to `auto`: more are taken only where they fit."""
USABLE = 0.95
"""Of a device's memory; the rest is lost between blocks of it."""
CARD = "H100 80GB HBM3"
SHARE_OF_PEAK = 0.5
"""Of the card's matrix peak that a build comes to, see docs/benchmarks.md."""


@dataclass(frozen=True)
class Need:
    """What a teacher needs of devices with so much memory. Bytes are per device, but for `weights`."""

    model_type: str
    parameters: int
    weights: int
    """Bytes of all weights."""
    memory: int
    """Of a device, as asked."""
    batch: int
    """Of a batch of the settings' rows, roughly."""
    room: int
    """For logits, targets and CUDA."""
    parallel: int | None
    """The fewest devices that hold it; None if no number does."""
    cut: Cut | None
    """What of it is divided among them: its matrices, or its layers where those cannot be cut far enough."""
    weights_each: dict[int, int]
    """Bytes of weights on each device, by the numbers of devices among which its matrices can be divided."""
    device_seconds: float | None
    """Of one `CARD` at `SHARE_OF_PEAK`, for all rows; None where their number or the teacher's work is not known."""

    def to_json(self) -> dict[str, object]:
        """Every number by its name."""
        return asdict(self)


def foresee(settings: BuildSettings, config: PreTrainedConfig, gigabytes: float) -> Need:
    """What the teacher of a configuration needs of devices of so many GiB. Raises `UserError` for less than nothing."""
    if not gigabytes > 0:
        raise UserError(f"--gpu-memory {gigabytes:g}: the GiB of one GPU, such as 80")
    size = teacher_size(config, getattr(torch, settings.teacher.dtype))
    rows, memory = settings.compute.batch_size, int(gigabytes * 2**30)
    batch = size.bytes_per_token * settings.rows.seq_len * (ROWS_TRIED if rows == "auto" else rows)
    parallel, cut = size.fewest(USABLE * memory, batch + ROOM_ON_GPU) or (None, None)
    return Need(
        model_type=config.model_type,
        parameters=size.parameters,
        weights=size.bytes,
        memory=memory,
        batch=batch,
        room=ROOM_ON_GPU,
        parallel=parallel,
        cut=cut,
        weights_each={n: size.bytes_each(n) for n in size.cuts},
        device_seconds=_device_seconds(settings, size),
    )


def _device_seconds(settings: BuildSettings, size: TeacherSize) -> float | None:
    if settings.rows.count is None or size.operations is None:
        return None
    positions = settings.rows.count * settings.rows.seq_len
    return size.operations.total(positions, positions) / (SHARE_OF_PEAK * PEAKS[CARD])


def render_need(need: Need) -> Table:
    """The need as a table for a terminal."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, words in _words(need).items():
        table.add_row(name, words)
    return table


def _words(need: Need) -> Mapping[str, str]:
    billions = f"{need.parameters / 1e9:,.1f} billion parameters, {byte_size(need.weights)}"
    beside = f"{byte_size(need.batch)} for a batch, {byte_size(need.room)} for logits and targets"
    words = {"teacher": f"{need.model_type}, {billions}; nothing was loaded", "beside, on each GPU": beside}
    if need.parallel is None:
        return words | {"needs": f"more than {MOST_DEVICES} GPUs of {byte_size(need.memory)}, or larger ones"}
    each = byte_size(need.weights_each[need.parallel] if need.cut == "tensors" else need.weights / need.parallel)
    words["needs"] = f"teacher.parallel {need.parallel}: {each} of weights on each GPU of {byte_size(need.memory)}"
    if need.parallel > 1:
        how = f"torchrun --nproc-per-node {need.parallel} -m teacher_cache build …, or a multiple of it"
        words["start it by"] = how if need.cut == "tensors" else "teacher-cache build …, which spreads its layers"
    more = {n: each for n, each in need.weights_each.items() if n > need.parallel}
    if more:
        words["other numbers"] = ", ".join(f"{n} ({byte_size(each)} each)" for n, each in more.items())
    if need.device_seconds is not None:
        share = f"at {SHARE_OF_PEAK:.0%} of the peak of an {CARD.partition(' ')[0]}"
        words["takes"] = f"{need.device_seconds / 3600:,.1f} GPU-hours {share}: {_by_devices(need)}"
    return words


def _by_devices(need: Need) -> str:
    assert need.device_seconds is not None
    assert need.parallel is not None
    busy = need.parallel if need.cut == "tensors" else 1
    return f"{duration(need.device_seconds / busy)} for one builder on {need.parallel}"
