"""The demo's last page: its numbers are those of the caches and the run, and a student that learnt nothing fails."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.inspect.summary import summarize
from tests.helpers import ROOT

SCRIPT = str(ROOT / "tools" / "demo_report.py")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "cache"
    return make_synthetic_cache(path, rows=8, seq_len=12, vocab_size=64, top_k=4, samples=8, hidden_size=32)


def run_of(folder: Path, *cross_entropies: float) -> Path:
    """A run that was measured to have these cross-entropies, the first before training."""
    lines = [{"cross_entropy": ce, "perplexity": 2**ce, "kl": ce / 2, "agreement": 0.25} for ce in cross_entropies]
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def report(cache: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The exit code of the program."""
    monkeypatch.setattr("sys.argv", [SCRIPT, str(cache), str(cache), str(run)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(SCRIPT, run_name="__main__")
    return stop.value.code


def test_the_page_says_what_was_made_and_learnt(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(cache, run_of(tmp_path, 8.0, 7.0, 5.0), monkeypatch) == 0
    printed, made = capsys.readouterr().out, summarize(open_cache(cache))
    assert f"{made['bytes_per_token']:.1f}, of which" in printed
    assert f"8.000 → 5.000 nats per token: fell by 3.000 (the teacher's own: {made['cross_entropy']:.3f})" in printed
    assert "perplexity       256 → 32.0" in printed
    assert "KL to teacher    4.000 → 2.500 nats at T = 1" in printed


def test_a_student_that_did_not_learn_fails_the_demo(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(cache, run_of(tmp_path, 8.0, 7.5), monkeypatch) == 1
    assert "did NOT fall by 1 nats, but by 0.500" in capsys.readouterr().out
