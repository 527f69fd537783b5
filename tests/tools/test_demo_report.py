"""The demo's last page: its numbers are those of the cache and the two runs, and a student that fails is named."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from student.run.files import RunSummary, Sample
from student.run.records import StepCost
from student.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.inspect.summary import summarize
from tests.helpers import ROOT

SCRIPT = str(ROOT / "tools" / "demo_report.py")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "cache"
    return make_synthetic_cache(path, rows=8, seq_len=12, vocab_size=64, top_k=4, samples=8, hidden_size=32)


@pytest.fixture(scope="module")
def teacher(cache: Path) -> float:
    """The teacher's own cross-entropy."""
    return float(summarize(open_cache(cache))["cross_entropy"])


def run_of(folder: Path, trained: int, *cross_entropies: float) -> Path:
    """A run that was measured to have these cross-entropies, the first before training."""
    folder.mkdir()
    lines = [
        {"step": i, "cross_entropy": ce, "perplexity": 2**ce, "kl": ce / 2, "agreement": 0.25}
        for i, ce in enumerate(cross_entropies)
    ]
    costs = [StepCost(i + 1, 50, 1.5, 0.0, 3 * 2**30, "a CPU").__dict__ for i in range(4)]
    for name, records in (("evaluation", lines), ("costs", costs), ("metrics", [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "settings.json").write_text(TrainSettings().model_dump_json())
    samples = [Sample(prompt=f"Beginning {i}", likeliest=f"{folder.name}\nwrote {i}", drawn="") for i in range(3)]
    summary = RunSummary.model_construct(
        cache="c", cache_fingerprint="f", teacher="t", teacher_weights_sha256="w", tokenizer_sha256="k", context="row",
        steps=4, trainable_parameters=trained, total_parameters=2 * trained, teacher_measures=None, samples=samples,
    )  # fmt: skip
    (folder / "summary.json").write_text(summary.model_dump_json())
    return folder


def report(cache: Path, paper: Path, hybrid: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The exit code of the program."""
    monkeypatch.setattr("sys.argv", [SCRIPT, str(cache), str(cache), str(paper), str(hybrid)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(SCRIPT, run_name="__main__")
    return stop.value.code


def test_the_page_shows_both_students_beside_the_teacher(
    cache: Path, teacher: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = run_of(tmp_path / "paper", 4_200_000, teacher + 9, teacher + 3)
    hybrid = run_of(tmp_path / "hybrid", 111_000_000, teacher + 0.5, teacher + 0.1)
    assert report(cache, paper, hybrid, monkeypatch) == 0
    printed, made = capsys.readouterr().out, summarize(open_cache(cache))
    assert f"{made['bytes_per_token']:.1f}, of which" in printed
    rows = {line.split("   ")[0]: line.split() for line in printed.splitlines()}
    found = [teacher + 9, teacher + 3, teacher + 0.5, teacher + 0.1]
    numbers = [word for word in rows["held-out CE, nats per token"][5:] if word != "→"]
    assert numbers == [f"{ce:.3f}" for ce in [*found, teacher]]
    numbers = [word for word in rows["KL from the teacher, nats"][5:] if word != "→"]
    assert numbers == [*(f"{ce / 2:.3f}" for ce in found), "0"]
    assert rows["parameters trained, millions"][-2:] == ["4.2", "111.0"]
    assert rows["tokens trained on"][-2:] == ["200", "200"]
    assert rows["seconds of training steps"][-2:] == ["6", "6"]
    assert rows["most memory, GiB"][-2:] == ["3.0", "3.0"]


def test_the_page_shows_how_each_continues_the_same_text(
    cache: Path, teacher: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    students = [run_of(tmp_path / name, 10, teacher + 3, teacher + 0.1) for name in ("paper", "hybrid")]
    report(cache, *students, monkeypatch)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    beginning = lines.index("Beginning 1 …")
    shown = [" ".join(line.split()) for line in lines[beginning + 1 : beginning + 3]]
    assert shown == ["the paper's paper wrote 1", "begins as its teacher hybrid wrote 1"]


@pytest.mark.parametrize(
    ("paper", "hybrid", "said"),
    [
        ((5.0, 4.5), (0.2, 0.1), "did NOT fall by 1 nats, but by 0.500"),
        ((5.0, 1.0), (0.2, 0.6), "ended 0.600 nats above it"),
    ],
)
def test_a_student_that_did_not_learn_fails_the_demo(
    cache: Path,
    teacher: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    paper: tuple[float, ...],
    hybrid: tuple[float, ...],
    said: str,
) -> None:
    first = run_of(tmp_path / "paper", 10, *(teacher + ce for ce in paper))
    second = run_of(tmp_path / "hybrid", 10, *(teacher + ce for ce in hybrid))
    assert report(cache, first, second, monkeypatch) == 1
    assert said in capsys.readouterr().out
