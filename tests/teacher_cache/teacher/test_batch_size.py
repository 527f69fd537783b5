"""`compute.batch_size: auto` stops where more rows are no faster or do not fit, and is found once for a cache."""

import threading
from pathlib import Path

import pytest

from teacher_cache.build import job, request
from teacher_cache.settings import BuildSettings, ComputeSettings, TeacherSettings
from teacher_cache.teacher import batch_size
from teacher_cache.teacher.batch_size import LARGEST, PATIENCE, find_batch_size, largest_worthwhile
from teacher_cache.teacher.load import load_teacher
from teacher_cache.verify.repair import repair
from tests.helpers.damageable import contents
from tests.helpers.e2e_corpus import write_text_corpus


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 1.1, 4: 1.5, 8: 3.0}, 4),
        ({1: 1.0, 2: 2.0}, 1),
        ({1: 1.0, 2: 1.1, 4: None}, 2),
        ({1: None}, 1),
        ({1: 1.0, 2: 1.2 + PATIENCE}, 1),
        ({1: PATIENCE}, 1),
        ({2**power: 1.0 for power in range(20)}, LARGEST),
    ],
)
def test_rows_double_while_each_gets_faster(seconds: dict[int, float | None], expected: int) -> None:
    assert largest_worthwhile(lambda rows: seconds[rows]) == expected


def test_memory_bounds_what_is_tried(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(TeacherSettings(model=str(tiny_teacher)))
    tried: list[int] = []

    def faster_and_faster(_teacher: object, rows: int, seq_len: int) -> float:
        tried.append(rows)
        return 1.0

    monkeypatch.setattr(batch_size, "_seconds", faster_and_faster)
    monkeypatch.setattr(batch_size, "_free_bytes", lambda _: 2 * 8 * 32 * teacher.bytes_per_token)
    assert find_batch_size(teacher, seq_len=32) == 8
    assert tried == [1, 2, 4, 8]


def settings(tiny_teacher: Path, folder: Path) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(tiny_teacher)},
            "corpus": {"source": str(write_text_corpus(folder))},
            "rows": {"seq_len": 32, "count": 24},
            "targets": {"preset": "small"},
            "compute": {"batch_size": "auto", "rows_per_shard": 8},
        }
    )


def test_a_cache_keeps_the_number_it_was_begun_with(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([2, 4, 8])
    monkeypatch.setattr(request, "find_batch_size", lambda *_: next(found))
    wanted, out = settings(tiny_teacher, tmp_path), tmp_path / "cache"
    job.build(wanted, out, range(1))
    assert job.build(wanted, out).shards_built == 2
    two = wanted.model_copy(update={"compute": ComputeSettings(batch_size=2, rows_per_shard=8)})
    job.build(two, tmp_path / "two")
    assert contents(out) == contents(tmp_path / "two")
    assert job.build(wanted, out).shards_found == 3
    next((out / "tokens").rglob("c/1/*")).write_bytes(b"damaged")
    assert repair(out, wanted).shards_built == 1
    assert contents(out) == contents(tmp_path / "two")


def test_of_builders_that_start_together_one_finds_it(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([2, 4])
    monkeypatch.setattr(request, "find_batch_size", lambda *_: next(found))
    wanted, out = settings(tiny_teacher, tmp_path), tmp_path / "cache"
    teacher = load_teacher(wanted.teacher)  # transformers loads one model at a time
    monkeypatch.setattr(job, "load_teacher", lambda *_: teacher)
    reports: list[job.BuildReport] = []
    together = [threading.Thread(target=lambda: reports.append(job.build(wanted, out))) for _ in range(2)]
    for one in together:
        one.start()
    for one in together:
        one.join()
    assert sum(report.shards_built for report in reports) == 3
    assert next(found) == 4
