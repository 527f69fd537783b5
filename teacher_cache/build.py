"""The writer side on one page: corpus → rows → teacher → targets → shards."""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numcodecs
import numpy as np
import torch
import transformers
import zarr

from cli_common.errors import UserError
from cli_common.progress import ProgressLine, byte_size
from teacher_cache.arrays import ShardArrays
from teacher_cache.corpus import describe_corpus, iter_documents
from teacher_cache.format import (
    ALIGNMENT,
    FORMAT_NAME,
    FORMAT_VERSION,
    HiddenLayout,
    Manifest,
    RowLayout,
    TargetLayout,
    chebyshev_temperatures,
    default_rows_per_chunk,
)
from teacher_cache.reader import open_cache, read_manifest
from teacher_cache.rows import TokenRow, iter_rows
from teacher_cache.settings import BuildSettings
from teacher_cache.store import LocalStore, digest
from teacher_cache.targets import keep_targets
from teacher_cache.teacher import Teacher, load_teacher
from teacher_cache.writer import CacheWriter, manifest_differences


@dataclass(frozen=True)
class BuildReport:
    """What a call of `build` did."""

    path: Path
    shards_built: int
    shards_found: int
    seconds: float


def build(settings: BuildSettings, out: Path) -> BuildReport:
    """Build the cache that `settings` describe at `out`, or continue it.

    Shards with a commit record are kept. Raises `UserError` on settings, corpus, teacher or folder at fault.
    """
    started = time.monotonic()
    store = LocalStore(out)
    if _is_already_built(store, settings):
        return BuildReport(out, 0, len(open_cache(out).commits), time.monotonic() - started)
    teacher = load_teacher(settings.teacher)
    _require_fit(settings, teacher)
    files = teacher.files()
    writer = CacheWriter(store, make_manifest(settings, teacher, files), files)
    pending = writer.pending_shards()
    _build_shards(settings, teacher, writer, pending)
    found = writer.manifest.shard_count - len(pending)
    return BuildReport(out, len(pending), found, time.monotonic() - started)


def _build_shards(settings: BuildSettings, teacher: Teacher, writer: CacheWriter, pending: list[int]) -> None:
    manifest, environment = writer.manifest, _environment(teacher)
    corpus_rows = _CorpusRows(settings, teacher)
    bytes_written = positions = 0
    done = manifest.rows.count - sum(len(manifest.shard_rows(shard)) for shard in pending)
    started = time.monotonic()
    with ProgressLine("build", total=manifest.rows.count, done=done) as progress:
        for shard in pending:
            arrays = ShardArrays.empty(manifest, len(manifest.shard_rows(shard)))
            for index, row in enumerate(corpus_rows.take(manifest.shard_rows(shard))):
                arrays.put_row(index, row)
            for batch in _batches(len(arrays.tokens), settings.compute.batch_size):
                compute_batch(teacher, arrays, batch)
                positions += int(arrays.loss_mask[batch].sum())
                speed = positions / (time.monotonic() - started)
                done += batch.stop - batch.start
                progress.update(done, f"rows · {speed:,.0f} tokens/s · {byte_size(bytes_written)} written")
            record = writer.write_shard(shard, arrays.stored(), arrays.label_logits, environment)
            bytes_written += sum(stored.bytes for stored in record.objects.values())


@torch.inference_mode()
def compute_batch(teacher: Teacher, arrays: ShardArrays, batch: slice) -> None:
    """Run the teacher over some rows of a shard and put what is kept of every counted position in its place."""
    tokens = torch.from_numpy(arrays.tokens[batch].astype(np.int64))
    states = teacher.states(tokens[:, :-1], mean=arrays.manifest.hidden.mean != "none")
    rows, positions = np.nonzero(arrays.loss_mask[batch])
    labels = tokens[:, 1:][rows, positions].to(teacher.device)
    final = states.final[rows, positions]
    layout = arrays.manifest.targets
    for chunk, logits in teacher.logits_in_chunks(final):
        kept = keep_targets(logits, labels[chunk], top_k=layout.top_k, node_temperatures=layout.node_temperatures)
        where = (rows[chunk] + batch.start, positions[chunk])
        arrays.put(where, kept, None if states.mean is None else states.mean[rows[chunk], positions[chunk]])


def make_manifest(settings: BuildSettings, teacher: Teacher, files: dict[str, bytes]) -> Manifest:
    """The manifest of the cache that these settings and this teacher make; counts the corpus' rows if need be."""
    return Manifest(
        format=FORMAT_NAME,
        format_version=FORMAT_VERSION,
        alignment=ALIGNMENT,
        teacher=teacher.identity(),
        tokenizer=teacher.tokenizer_identity(),
        corpus=describe_corpus(settings.corpus),
        rows=_row_layout(settings, settings.rows.count or _CorpusRows(settings, teacher).count()),
        targets=_target_layout(settings),
        hidden=HiddenLayout(mean=settings.hidden.mean),
        compute=_compute(settings),
        files={key: digest(data) for key, data in files.items()},
    )


def _row_layout(settings: BuildSettings, count: int) -> RowLayout:
    per_shard = settings.compute.rows_per_shard
    return RowLayout(
        mode=settings.rows.mode,
        seq_len=settings.rows.seq_len,
        count=count,
        rows_per_shard=per_shard,
        rows_per_chunk=default_rows_per_chunk(per_shard),
    )


def _target_layout(settings: BuildSettings) -> TargetLayout:
    return TargetLayout(
        top_k=settings.targets.top_k,
        samples=0,
        value_dtype=settings.targets.value_dtype,
        node_temperatures=chebyshev_temperatures(),
    )


def _compute(settings: BuildSettings) -> dict[str, int]:
    return {"batch_size": settings.compute.batch_size}


def _is_already_built(store: LocalStore, settings: BuildSettings) -> bool:
    """Whether a finished cache made with these settings is there, found out without loading the teacher."""
    existing = read_manifest(store)
    if existing is None:
        return False
    asked = {
        "teacher": existing.teacher.model_copy(
            update={
                "name": settings.teacher.model,
                "dtype": settings.teacher.dtype,
                "attention": settings.teacher.attention,
                "revision": settings.teacher.revision or existing.teacher.revision,
            }
        ),
        "corpus": describe_corpus(settings.corpus),
        "rows": _row_layout(settings, settings.rows.count or existing.rows.count),
        "targets": _target_layout(settings),
        "hidden": HiddenLayout(mean=settings.hidden.mean),
        "compute": _compute(settings),
    }
    wanted = existing.model_copy(update=asked)
    same = wanted.rows.count == existing.rows.count and not manifest_differences(existing, wanted)
    return same and open_cache(store.root, allow_unfinished=True).is_finished


def _require_fit(settings: BuildSettings, teacher: Teacher) -> None:
    if settings.targets.top_k > teacher.vocab_size:
        raise UserError(
            f"targets.top_k {settings.targets.top_k}: larger than the teacher's vocabulary of {teacher.vocab_size}; "
            f"set it to {teacher.vocab_size} or less"
        )
    context = teacher.context_length
    if context is not None and settings.rows.seq_len > context:
        raise UserError(
            f"rows.seq_len {settings.rows.seq_len}: longer than the teacher's context of {context}; "
            f"set it to {context} or less"
        )


class _CorpusRows:
    """The corpus as rows in order; ranges must be asked for in ascending order."""

    def __init__(self, settings: BuildSettings, teacher: Teacher) -> None:
        self._settings = settings
        self._tokens = teacher.tokenizer, teacher.tokenizer_identity()
        self._next_row = 0
        self._rows = self._iterate()

    def count(self) -> int:
        """Rows the whole corpus gives: one pass of tokenising."""
        return sum(1 for _ in self._iterate())

    def take(self, wanted: range) -> Iterator[TokenRow]:
        """The rows of one shard; raises `UserError` when the corpus ends before them."""
        for _ in islice(self._rows, wanted.start - self._next_row):
            self._next_row += 1
        for row in islice(self._rows, len(wanted)):
            self._next_row += 1
            yield row
        if self._next_row < wanted.stop:
            raise UserError(
                f"corpus.source {self._settings.corpus.source}: ends after {self._next_row} rows, rows.count asks for "
                f"more; set rows.count to {self._next_row} or less, or leave it out (finished shards are kept)"
            )

    def _iterate(self) -> Iterator[TokenRow]:
        tokenizer, identity = self._tokens
        return iter_rows(
            iter_documents(self._settings.corpus),
            tokenizer,
            self._settings.rows,
            eos_token_id=identity.eos_token_id,
            pad_token_id=identity.pad_token_id,
        )


def _batches(rows: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, rows, batch_size):
        yield slice(start, min(start + batch_size, rows))


def _environment(teacher: Teacher) -> dict[str, str]:
    """What a shard was computed with: rounding may differ where this does."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "zarr": zarr.__version__,
        "numcodecs": numcodecs.__version__,
        "device": torch.cuda.get_device_name() if teacher.device.type == "cuda" else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
    }
