"""The progress line counts rows of the whole cache, whoever computed them."""

import pytest

from delta_common.machine.matrix_work import MatrixWork, Operations
from teacher_cache.build.progress_words import BuildProgress
from tests.helpers.golden import changed, golden_manifest


def test_rows_done_before_and_by_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = changed(golden_manifest("sampled"), "rows", count=10, rows_per_shard=4, rows_per_chunk=4)
    progress = BuildProgress(manifest, [1, 2])
    shown: list[tuple[int, str]] = []
    monkeypatch.setattr(progress.line, "update", lambda done, words: shown.append((done, words)))
    progress.pass_over(4)
    progress.add(1, positions=12, written=2048)
    assert [done for done, _ in shown] == [9]
    assert shown[0][1].endswith("tokens/s · 2.0 KiB written")
    progress.add(1, positions=12, written=2048)
    assert len(shown) == 1, "the last rows are said when they are written"
    progress.end(written=4096)
    assert shown[-1][0] == 10


def test_the_share_of_the_peak_is_of_what_this_process_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = changed(golden_manifest("sampled"), "rows", count=10, rows_per_shard=4, rows_per_chunk=4)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    work = MatrixWork(Operations(position=3.0, counted=5.0), peak=1000.0)
    progress = BuildProgress(manifest, [1, 2], work)
    shown: list[str] = []
    monkeypatch.setattr(progress.line, "update", lambda done, words: shown.append(words))
    monkeypatch.setattr("time.monotonic", lambda: 102.0)
    progress.pass_over(4)
    progress.add(1, positions=12, written=2048)
    share = (3 * manifest.seq_len + 5 * 12) / 2000
    assert shown == [f"rows · 6 tokens/s · MFU {share:.1%} · 2.0 KiB written"]


def test_only_the_first_process_shows_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    progress = BuildProgress(golden_manifest("sampled"), [0])
    with progress.line:
        progress.add(1, positions=1, written=1)
    assert capsys.readouterr().err == ""
