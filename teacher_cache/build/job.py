"""The builder on one page: corpus → rows → teacher → targets → shards.

`build` settles what is asked for, and `build_shards` does it: `read_shards` cuts the corpus into rows, `compute_shard`
runs the teacher over them and keeps targets, and a thread beside encodes, writes and commits the shard. What happens to
one batch is in `compute.start_batch`.
"""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from delta_common.background import Background
from delta_common.errors import UserError
from teacher_cache.build.background_writes import ShardWrites
from teacher_cache.build.compute import computed_batches
from teacher_cache.build.progress_words import BuildProgress
from teacher_cache.build.request import (
    is_already_built,
    open_writer,
    recorded_choices,
    require_fit,
    say_what_students_miss,
)
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.build.writer import CacheWriter, environment
from teacher_cache.corpus.chat.template import use_template
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.corpus.rows import TokenRow
from teacher_cache.format.codec import encoding_beside_other_work
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings
from teacher_cache.store.metadata import read_manifest
from teacher_cache.store.open import open_store
from teacher_cache.teacher.load import group_of, load_teacher, serve
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.group import LeftOut, TeacherGroup

SHARDS_AHEAD = 3
"""Read this many shards ahead; another builder may claim the next one."""


@dataclass(frozen=True)
class BuildReport:
    """What a call of `build` did."""

    path: Path | str
    shards_built: int
    shards_found: int
    shards_elsewhere: int
    """Shards still to be built: by another process that is at them, or outside the shards asked for."""
    seconds: float


def build(settings: BuildSettings, out: str | Path, shards: range | None = None) -> BuildReport:
    """Build the cache that `settings` describe at `out`, or continue it; with `shards` only these of its shards.

    Finished shards are kept. A shard that another process is building is left to it. Raises `UserError` naming what is
    at fault: a setting, the corpus, the teacher or the folder. Where several processes hold the teacher together one of
    them builds, and in the others this raises `LeftOut` when the build has ended.
    """
    with group_of(settings.teacher) as group:
        if not group.leads:
            serve(group)
            raise LeftOut
        return build_in_group(group, settings, out, shards)


def build_in_group(
    group: TeacherGroup, settings: BuildSettings, out: str | Path, shards: range | None = None
) -> BuildReport:
    """`build` in the process that leads those of one teacher; the others serve it."""
    started = time.monotonic()
    store = open_store(out)
    settings = recorded_choices(settings, read_manifest(store))
    if is_already_built(store, settings):
        return BuildReport(store.path, 0, len(open_cache(out).commits), 0, time.monotonic() - started)
    teacher = load_teacher(settings.teacher, group)
    use_template(teacher.tokenizer, settings.corpus)
    require_fit(settings, teacher)
    say_what_students_miss(teacher)
    settings, writer = open_writer(store, settings, teacher)
    ours = range(writer.manifest.shard_count) if shards is None else shards
    _require_within(ours, writer.manifest.shard_count)
    built = build_shards(settings, teacher, writer, [s for s in writer.pending_shards() if s in ours])
    if abandoned := [s for s in writer.abandoned_shards() if s in ours]:
        built += build_shards(settings, teacher, writer, abandoned)
    elsewhere = len(writer.pending_shards())
    if not elsewhere:
        store.clear_locks()
    found = writer.manifest.shard_count - built - elsewhere
    return BuildReport(store.path, built, found, elsewhere, time.monotonic() - started)


def _require_within(shards: range, count: int) -> None:
    if shards.start < 0 or shards.stop > count or not shards:
        raise UserError(f"--shards {shards.start}:{shards.stop}: the cache has the shards 0:{count}; name some of them")


def build_shards(settings: BuildSettings, teacher: Teacher, writer: CacheWriter, pending: list[int]) -> int:
    """Build each pending shard that no other process has claimed; return their number.

    While one shard is computed, the rows of the next are read, and the one before is encoded and written.
    """
    manifest, progress = writer.manifest, BuildProgress(writer.manifest, pending, teacher.matrix_work)
    corpus_rows = CorpusRows(settings, teacher.tokenizer, manifest.tokenizer, writer.bookmarks())
    with (
        Background(read_shards(manifest, corpus_rows, pending), SHARDS_AHEAD) as read,
        encoding_beside_other_work(),
        ShardWrites(writer, environment(teacher.device)) as writes,
        progress.line,
    ):
        for shard, rows in read:
            with ExitStack() as claim:
                if not claim.enter_context(writer.claim(shard)):
                    progress.pass_over(len(rows))
                    continue

                def after_batch(count: int, positions: int) -> None:
                    writes.raise_failure()
                    progress.add(count, positions, writes.bytes)

                arrays, statistics = compute_shard(teacher, manifest, shard, rows, after_batch)
                writes.finish()
                writes.start(shard, arrays.by_name, statistics, claim.pop_all())
        writes.finish()
        progress.end(writes.bytes)
    if skipped := corpus_rows.skipped():
        print(f"build: note: {skipped}", file=sys.stderr)
    return writes.shards


def read_shards(
    manifest: Manifest, corpus_rows: CorpusRows, pending: list[int]
) -> Generator[tuple[int, list[TokenRow]], None, None]:
    """Each pending shard with its rows."""
    for shard in pending:
        yield shard, list(corpus_rows.take(manifest.shard_rows(shard)))


def compute_shard(
    teacher: Teacher,
    manifest: Manifest,
    shard: int,
    rows: list[TokenRow],
    after_batch: Callable[[int, int], None],
) -> tuple[ShardArrays, dict[str, float]]:
    """A shard's arrays and statistics; after each batch, `after_batch` is given its rows and counted positions."""
    arrays, statistics = ShardArrays.empty(manifest, manifest.shard_rows(shard)), ShardStatistics(manifest.targets)
    arrays.put_rows(rows)
    for batch in computed_batches(teacher, arrays, manifest.compute["batch_size"], statistics):
        after_batch(batch.stop - batch.start, int(arrays.loss_mask[batch].sum()))
    return arrays, statistics.sums
