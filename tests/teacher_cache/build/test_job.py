"""Reading, computing and writing overlap, and an error in any of them ends a build at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from teacher_cache import open_cache
from teacher_cache.build import compute, job
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.writer import CacheWriter, environment
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.format.commits import CommitRecord, commit_key
from teacher_cache.settings import BuildSettings
from teacher_cache.store.local import LocalStore
from teacher_cache.teacher.model import Teacher
from tests.helpers.damageable import contents
from tests.helpers.e2e_corpus import write_text_corpus

SHARDS = 5


def build_shards_serially(settings: BuildSettings, teacher: Teacher, writer: CacheWriter, pending: list[int]) -> int:
    """`job.build_shards`, one thing after another: its twin."""
    corpus_rows = CorpusRows(settings, teacher.tokenizer, writer.manifest.tokenizer, writer.bookmarks())
    built = 0
    for shard, rows in job.read_shards(writer.manifest, corpus_rows, pending):
        with writer.claim(shard) as mine:
            if mine:
                arrays, statistics = job.compute_shard(teacher, writer.manifest, shard, rows, lambda *_: None)
                writer.write_shard(shard, arrays.by_name, statistics, environment(teacher.device))
                built += 1
    return built


@pytest.fixture
def wanted(tiny_teacher: Path, tmp_path: Path) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(tiny_teacher)},
            "corpus": {"source": str(write_text_corpus(tmp_path))},
            "rows": {"seq_len": 32, "count": 4 * SHARDS},
            "targets": {"preset": "small"},
            "compute": {"batch_size": 2, "rows_per_shard": 4},
        }
    )


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("background", "shard-writes"))]


def test_bytes_are_those_of_one_thing_after_another(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.build(wanted, tmp_path / "overlapping")
    monkeypatch.setattr(job, "build_shards", build_shards_serially)
    assert job.build(wanted, tmp_path / "serial").shards_built == SHARDS
    assert contents(tmp_path / "overlapping") == contents(tmp_path / "serial")


@pytest.mark.parametrize(
    ("cores", "builders", "chosen", "threads"), [(16, 1, None, 12), (16, 4, None, 3), (1, 1, None, 1), (16, 1, 16, 16)]
)
def test_encoding_leaves_cores_to_computing(
    wanted: BuildSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    builders: int,
    chosen: int | None,
    threads: int,
) -> None:
    found: list[object] = []

    def watched(writer: CacheWriter, *arguments: object) -> CommitRecord:
        found.append(zarr.config.get("threading.max_workers"))
        return write(writer, *arguments)  # type: ignore[arg-type]

    write = CacheWriter.write_shard
    monkeypatch.setattr(CacheWriter, "write_shard", watched)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(builders))
    with zarr.config.set({"threading.max_workers": chosen}):
        job.build(wanted, tmp_path / "cache")
        assert zarr.config.get("threading.max_workers") == chosen
    assert found == [threads] * SHARDS


def slowed(call: Callable[..., object], seconds: float, log: list[tuple[str, float]]) -> Callable[..., object]:
    def slow(*arguments: object, **named: object) -> object:
        log.append((f"{call.__name__} begins", time.monotonic()))
        time.sleep(seconds)
        found = call(*arguments, **named)
        log.append((f"{call.__name__} ends", time.monotonic()))
        return found

    return slow


def test_a_shard_is_written_while_the_next_is_computed_and_only_one(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, float]] = []
    monkeypatch.setattr(CacheWriter, "write_shard", slowed(CacheWriter.write_shard, 0.2, log))
    monkeypatch.setattr(compute, "start_batch", slowed(compute.start_batch, 0.1, log))
    job.build(wanted, tmp_path / "cache")
    words = [word for word, _ in log]
    first = words.index("write_shard begins")
    assert "start_batch begins" in words[first : words.index("write_shard ends")]
    writes = [word for word in words if word.startswith("write_shard")]
    assert writes == ["write_shard begins", "write_shard ends"] * SHARDS


def test_arrays_of_no_more_than_two_shards_are_in_memory(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living: list[int] = []
    made: list[object] = []
    empty = ShardArrays.empty.__func__

    def counted(kind: type[ShardArrays], *arguments: object) -> ShardArrays:
        import weakref

        arrays = empty(kind, *arguments)
        made.append(weakref.ref(arrays.tokens))
        living.append(sum(one() is not None for one in made))
        return arrays

    monkeypatch.setattr(ShardArrays, "empty", classmethod(counted))
    monkeypatch.setattr(CacheWriter, "write_shard", slowed(CacheWriter.write_shard, 0.1, []))
    job.build(wanted, tmp_path / "cache")
    assert max(living) == 2


def test_a_claim_is_held_until_its_commit_is_written(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, out = CacheWriter.write_shard, tmp_path / "cache"

    def watched(writer: CacheWriter, shard: int, *arguments: object) -> CommitRecord:
        store = LocalStore(out)
        assert not store.is_abandoned(f"shard-{shard:05d}")
        record = write(writer, shard, *arguments)  # type: ignore[arg-type]
        assert store.size(commit_key(shard)) is not None
        assert not store.is_abandoned(f"shard-{shard:05d}")
        return record

    monkeypatch.setattr(CacheWriter, "write_shard", watched)
    assert job.build(wanted, out).shards_built == SHARDS
    assert not (out / ".locks").exists()


def test_an_error_in_writing_ends_the_build_within_a_batch(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[str, float]] = []

    def full(*_: object) -> CommitRecord:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CacheWriter, "write_shard", full)
    monkeypatch.setattr(compute, "start_batch", slowed(compute.start_batch, 0.1, batches))
    with pytest.raises(OSError, match="No space"):
        job.build(wanted, tmp_path / "cache")
    assert len(batches) // 2 <= 2 + 2  # the shard before, a batch, and the one that is started while that arrives
    assert LocalStore(tmp_path / "cache").is_abandoned("shard-00000")


def test_an_error_in_reading_comes_after_the_shard_in_hand_is_kept(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = CorpusRows.take

    def damaged(rows: CorpusRows, wanted: range) -> object:
        if wanted.start == 8:
            raise ValueError("a document that cannot be read")
        return take(rows, wanted)

    monkeypatch.setattr(CorpusRows, "take", damaged)
    with pytest.raises(ValueError, match="cannot be read"):
        job.build(wanted, tmp_path / "cache")
    assert set(open_cache(tmp_path / "cache", allow_unfinished=True).commits) <= {0, 1}


def test_an_error_in_computing_keeps_the_shard_before(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = compute.start_batch

    def broken(teacher: object, arrays: ShardArrays, *rest: object) -> object:
        if arrays.rows.start == 8:
            raise RuntimeError("the teacher broke down")
        return start(teacher, arrays, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(compute, "start_batch", broken)
    monkeypatch.setattr(CacheWriter, "write_shard", slowed(CacheWriter.write_shard, 0.2, []))
    with pytest.raises(RuntimeError, match="broke down"):
        job.build(wanted, tmp_path / "cache")
    assert set(open_cache(tmp_path / "cache", allow_unfinished=True).commits) == {0, 1}


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """A shell that starts tests in the background has SIGINT ignored in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_an_interrupt_ends_a_build_and_keeps_what_is_committed(
    wanted: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CacheWriter, "write_shard", slowed(CacheWriter.write_shard, 0.5, []))
    start, calls = compute.start_batch, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compute, "start_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.build(wanted, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache", allow_unfinished=True)
    assert set(cache.commits) == {0}
    assert np.isfinite(cache.rows(range(4)).log_mass).all()
    monkeypatch.undo()
    assert job.build(wanted, tmp_path / "cache").shards_built == SHARDS - 1
