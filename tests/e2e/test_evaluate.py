"""student-eval and student-report as a user meets them, against whole vectors of a real, tiny teacher in float64."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from student.cli import evaluate as eval_cli
from student.cli import report as report_cli
from student.cli import train as train_cli
from student.evaluate.trained import load_student
from student.report.page import render_report
from student.run.files import read_run
from student.train import step_log
from teacher_cache.build.job import build as build_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.settings import BuildSettings
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.small_training import SMALL

VOCAB, LENGTH = 257, 32
TARGETS: dict[str, dict[str, Any]] = {
    "train": {"top_k": 8, "samples": 24},
    "sampled": {"top_k": 8, "samples": 24},
    "exact": {"mode": "exact"},
    "top": {"top_k": 8, "samples": 0},
    "warm": {"top_k": 8, "samples": 24, "temperatures": [1.2, 2.0], "proposal": [[1.2, 1.0]]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """Caches of one teacher over one text, one to train on and others to measure with, and a run, `runs/student`."""
    made = tmp_path_factory.mktemp("evaluate")
    for name, targets in TARGETS.items():
        rows = {"seq_len": LENGTH, "count": 48} if name == "train" else {"seq_len": LENGTH, "count": 20}
        teacher = {"model": str(tiny_teacher), "dtype": "float32"}
        text = made / "texts" if (made / "texts").exists() else write_text_corpus(made, words=9)
        said = {"teacher": teacher, "corpus": {"source": str(text)}, "rows": rows, "targets": targets}
        build_cache(BuildSettings.model_validate(said), made / name)
    assert train(made, "student") == 0
    return made


@contextmanager
def told(*words: Path | str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in words])
        yield


def train(folder: Path, name: str, *options: str) -> int:
    words = ["--cache", folder / "train", "--out", folder / "runs" / name, "--evaluation.cache", folder / "exact"]
    every = ["--evaluation.every=2", *options]
    with told("student-train", *words, *SMALL, *every), pytest.raises(SystemExit) as stop:
        train_cli.main()
    return int(stop.value.code or 0)


def run(program: Any, *words: Path | str) -> int:
    with told(program.app.name[0], *words), pytest.raises(SystemExit) as stop:
        program.main()
    return int(stop.value.code or 0)


@pytest.fixture
def measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def measure(*options: Path | str) -> dict[str, Any]:
        capsys.readouterr()
        assert run(eval_cli, folder / "runs" / "student", *options, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return measure


class Truth:
    """Student and teacher at every counted position of a cache's rows, by whole vectors in float64, a row at a time."""

    def __init__(self, run: Path, cache: Cache, teacher: Path) -> None:
        student = load_student(run, cache, torch.device("cpu")).model
        online = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
        parts, document = [], -1
        self.document: list[int] = []
        with torch.no_grad():
            for index in range(len(cache)):
                row = cache[index]
                tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
                hidden = student(tokens[:, :-1])[0].double()
                ours = (hidden @ student.head.weight[:VOCAB].double().T).log_softmax(-1)
                theirs = online(tokens[:, :-1]).logits[0, :, :VOCAB].double().log_softmax(-1)
                parts.append([x[row.loss_mask].numpy() for x in (ours, theirs)] + [row.tokens[1:][row.loss_mask]])
                for starts, counts in zip(row.document_start, row.loss_mask, strict=True):
                    document += bool(starts)
                    self.document += [document] if counts else []
        self.log_q, self.log_p, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        self.labels = labels.astype(np.int64)

    def figures(self, log_p: NDArray[np.float64]) -> dict[str, float]:
        at = np.arange(len(self.labels))
        nats = -log_p[at, self.labels].mean()
        confidence, correct = np.exp(log_p.max(-1)), log_p.argmax(-1) == self.labels
        bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
        gaps = [(bins == b).mean() * abs((correct - confidence)[bins == b].mean()) for b in set(bins.tolist())]
        return {
            "cross_entropy": nats,
            "perplexity": np.exp(nats),
            "accuracy": correct.mean(),
            "calibration_error": sum(gaps),
        }

    def beside(self) -> dict[str, float]:
        p = np.exp(self.log_p)
        return {
            "kl": (p * (self.log_p - self.log_q)).sum(-1).mean(),
            "agreement": (self.log_p.argmax(-1) == self.log_q.argmax(-1)).mean(),
        }


@pytest.fixture(scope="module")
def truth(folder: Path, tiny_teacher: Path) -> Truth:
    return Truth(folder / "runs" / "student", open_cache(folder / "exact"), tiny_teacher)


def test_every_number_is_that_of_whole_vectors(measured: Any, truth: Truth, folder: Path) -> None:
    found = measured("--cache", folder / "exact")
    for who, expected in {
        "student": truth.figures(truth.log_q) | truth.beside(),
        "teacher": truth.figures(truth.log_p),
    }.items():
        for name, value in expected.items():
            estimate = found[who][name]
            assert estimate["value"] == pytest.approx(value, rel=2e-4, abs=1e-5), (who, name)
            assert estimate["low"] < value < estimate["high"], (who, name)
            assert not estimate["at_least"]
    assert found["teacher"]["kl"] is None
    assert found["tokens"] == len(truth.labels)
    assert found["rows"] == 20


def test_each_document_has_its_own_numbers(measured: Any, truth: Truth, folder: Path) -> None:
    found = measured("--cache", folder / "exact")["by_document"]
    nats = -truth.log_q[np.arange(len(truth.labels)), truth.labels]
    for number, one in enumerate(found):
        inside = np.array(truth.document) == number
        assert one["tokens"] == inside.sum()
        assert one["cross_entropy"] == pytest.approx(nats[inside].mean(), rel=1e-4)
    assert len(found) == max(truth.document) + 1 > 5


def test_a_sampled_cache_gives_the_same_up_to_noise_and_a_bucket_a_bound(measured: Any, folder: Path) -> None:
    exact, sampled, top = (measured("--cache", folder / name) for name in ("exact", "sampled", "top"))
    for name in ("cross_entropy", "agreement", "accuracy", "calibration_error"):
        assert sampled["student"][name] == pytest.approx(exact["student"][name], rel=1e-4)
    truth = exact["student"]["kl"]["value"]
    assert sampled["student"]["kl"]["low"] < truth < sampled["student"]["kl"]["high"]
    assert top["student"]["kl"]["at_least"]
    assert top["student"]["kl"]["value"] < truth
    nats = [one["teacher"]["cross_entropy"]["value"] for one in (exact, sampled, top)]
    assert nats == pytest.approx([nats[0]] * 3, rel=1e-3)
    assert sampled["teacher"]["cross_entropy"]["low"] is None


def test_training_measured_the_same_as_student_eval(measured: Any, folder: Path) -> None:
    last = read_run(folder / "runs" / "student").evaluations[-1]
    found = measured("--cache", folder / "exact")["student"]
    for name in ("cross_entropy", "perplexity", "kl", "agreement", "accuracy", "calibration_error"):
        assert found[name]["value"] == pytest.approx(last[name], rel=1e-5), name
    summary = read_run(folder / "runs" / "student").summary
    assert summary is not None
    assert summary.teacher_measures is not None
    teacher = measured("--cache", folder / "exact")["teacher"]
    for name, value in summary.teacher_measures.items():
        assert teacher[name]["value"] == pytest.approx(value, rel=1e-5), name


def test_text_is_cut_into_rows_as_the_builder_cuts_it(measured: Any, folder: Path) -> None:
    """The whole text without a teacher, by the rows of the cache trained on."""
    found = measured("--corpus", folder / "texts")
    assert found["teacher"] is None
    assert found["student"]["kl"] is None
    assert len(found["by_document"]) == 60
    first = measured("--cache", folder / "exact")["by_document"]
    for ours, theirs in zip(found["by_document"][: len(first) - 1], first[:-1], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], rel=1e-5)


def test_a_table_has_the_teacher_beside_the_student(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(eval_cli, folder / "runs" / "student", "--cache", folder / "top") == 0
    printed = capsys.readouterr().out
    assert "the teacher" in printed
    assert re.search(r"KL from the teacher at T = 1, nats +│ +≥ \d", printed)
    assert "one bucket for all others" in printed
    assert "documents are few: the intervals are rough" in printed


def damaged_run(folder: Path, name: str) -> Path:
    made = folder / "runs" / name
    made.mkdir(parents=True, exist_ok=True)
    for file in (folder / "runs" / "student").glob("*.json*"):
        (made / file.name).write_bytes(file.read_bytes())
    (made / "trained.safetensors").write_bytes((folder / "runs" / "student" / "trained.safetensors").read_bytes())
    return made


def prepare(folder: Path) -> None:
    """Folders that something is wrong with."""
    (damaged_run(folder, "unfinished") / "summary.json").unlink()
    (damaged_run(folder, "without_weights") / "trained.safetensors").unlink()
    cut = damaged_run(folder, "cut_weights") / "trained.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    (damaged_run(folder, "damaged_settings") / "settings.json").write_text("{")
    (damaged_run(folder, "damaged_metrics") / "metrics.jsonl").write_text("[1]\n")
    (damaged_run(folder, "damaged_costs") / "costs.jsonl").write_text('{"step": 1}\n')
    (folder / "another_model").mkdir(exist_ok=True)
    (folder / "another_model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "empty.txt").write_text("")
    if not (folder / "another").exists():
        make_synthetic_cache(folder / "another", rows=8, seq_len=12, vocab_size=64, top_k=8, hidden_size=16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/student"], "nothing to measure on; give --cache HELDOUT or --corpus FILE"),
        (["nowhere", "--cache", "exact"], "nowhere: no training run here; give the --out folder of student-train"),
        (["exact", "--cache", "exact"], "exact: no training run here"),
        (["runs/unfinished", "--cache", "exact"], "unfinished: the run has not finished; run its student-train"),
        (["runs/unfinished", "--corpus", "texts"], "unfinished: the run has not finished"),
        (["runs/without_weights", "--cache", "exact"], "trained.safetensors: not the parameters of this run's student"),
        (["runs/cut_weights", "--cache", "exact"], "trained.safetensors: not the parameters of this run's student"),
        (["runs/damaged_settings", "--cache", "exact"], "settings.json: not what student-train writes there"),
        (["runs/student", "--cache", "nowhere"], "nowhere: no such folder"),
        (["runs/student", "--cache", "another"], "another: another teacher than"),
        (
            ["runs/student", "--cache", "warm"],
            "--cache warm: temperature 1 is outside the cached range 1.2 to 2; build one",
        ),
        (["runs/student", "--corpus", "nowhere.txt"], "nowhere.txt"),
        (
            ["runs/student", "--corpus", "empty.txt"],
            "no position counts in the rows of --cache or --corpus; give more text",
        ),
        (["another_model", "--cache", "exact"], "another_model: its tokenizer cannot be loaded ("),
        (["another_model", "--corpus", "texts"], "give --cache"),
    ],
)
def test_bad_input_of_student_eval_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    prepare(folder)
    monkeypatch.chdir(folder)
    assert run(eval_cli, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("student-eval: error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no run is given"),
        (["nowhere"], "nowhere: no training run here; give the --out folder of student-train"),
        (["runs/damaged_metrics"], "metrics.jsonl: not readable as lines of JSON objects; is it damaged?"),
        (["runs/damaged_costs"], "costs.jsonl: not what student-train writes there; is it damaged?"),
        (["runs/student", "--out", "/proc/nowhere/page.html"], "/proc/nowhere/page.html: cannot be written"),
        (["runs/student"] * 19, "19 runs: a chart can show at most 18; leave some out"),
    ],
)
def test_bad_input_of_student_report_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    prepare(folder)
    monkeypatch.chdir(folder)
    assert run(report_cli, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("student-report: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_run_has_its_report_and_runs_one_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (folder / "runs" / "student" / "report.html").read_text(encoding="utf-8")
    for words in ("Cross-entropy, nats per token", "Tokens per second", "the teacher", "likeliest", "drawn"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    train(folder, "other", "--optimizer.learning_rate=1e-3")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert run(report_cli, "runs/student", "runs/other", "--out", "both.html") == 0
    assert capsys.readouterr().out.startswith("both.html: ")
    both = (folder / "both.html").read_text(encoding="utf-8")
    assert "optimizer.learning_rate" in both
    assert "training.max_steps" not in both


def test_a_stopped_run_that_was_continued_reports_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = step_log.record

    def stopping(job: Any, metrics: step_log.StepMetrics) -> None:
        record(job, metrics)
        if metrics.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step_log, "record", stopping)
        assert train(folder, "stopped/student") != 0
    unfinished = read_run(folder / "runs" / "stopped" / "student")
    assert unfinished.summary is None
    assert "No sample of text: the run has not finished" in render_report([unfinished])
    assert train(folder, "stopped/student") == 0
    stopped, whole = (read_run(folder / "runs" / name / "student") for name in ("stopped", "."))
    assert [cost.step for cost in stopped.costs] == [1, 2, 3, 4, 5, 6]
    assert stopped.summary == whole.summary
    assert (stopped.metrics, stopped.evaluations) == (whole.metrics, whole.evaluations)


def test_a_student_of_16_bits_is_measured_in_float32_on_a_cpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "half", "--training.precision=bf16") == 0
    student = load_student(folder / "runs" / "half", open_cache(folder / "exact"), torch.device("cpu")).model
    assert {parameter.dtype for parameter in student.parameters()} == {student.head.weight.dtype} == {torch.float32}
    capsys.readouterr()
    assert run(eval_cli, folder / "runs" / "half", "--cache", folder / "exact", "--json") == 0
    found = json.loads(capsys.readouterr().out)["student"]["cross_entropy"]["value"]
    assert found == pytest.approx(read_run(folder / "runs" / "half").evaluations[-1]["cross_entropy"], rel=0.02)


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The run's student as a folder that transformers loads."""
    hf = pytest.importorskip("student.inference.hf", reason="this version does not export")
    student = load_student(folder / "runs" / "student", open_cache(folder / "train"), torch.device("cpu")).model
    manifest = open_cache(folder / "train").manifest
    config = hf.DistilXLSTMForCausalLM.config_class(
        vocab_size=manifest.vocab_size,
        padded_vocab_size=manifest.padded_vocab_size,
        hidden_size=manifest.hidden_size,
        slstm_at=[0],
        tokenizer_sha256=manifest.tokenizer_sha256,
        provenance={"teacher": manifest.teacher.model_dump(mode="json"), "context": manifest.rows.context},
    )
    model = hf.DistilXLSTMForCausalLM(config)
    frozen = dict(student.named_buffers())
    model.student.load_state_dict(student.state_dict() | {"embedding": frozen["embedding"]})
    model.save_pretrained(folder / "exported")
    return folder / "exported"


def test_an_export_has_the_numbers_of_its_run(
    measured: Any, folder: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = measured("--cache", folder / "sampled")
    capsys.readouterr()
    assert run(eval_cli, exported, "--cache", folder / "sampled", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for name, estimate in expected["student"].items():
        assert found["student"][name]["value"] == pytest.approx(estimate["value"], rel=1e-5, abs=1e-6), name
    assert run(eval_cli, exported, "--cache", folder / "sampled", "--corpus", folder / "texts") == 0


def test_an_export_that_does_not_fit_or_is_cut_is_one_line(
    folder: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(folder)
    assert run(eval_cli, exported, "--cache", folder / "another") == 2
    assert "another teacher than" in capsys.readouterr().err
    cut = folder / "cut_export"
    cut.mkdir()
    for file in exported.iterdir():
        (cut / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".safetensors" else None])
    assert run(eval_cli, cut, "--cache", folder / "sampled") == 2
    error = capsys.readouterr().err
    assert "its weights or configuration are damaged" in error
    assert error.count("\n") == 1
