"""A run of a real, tiny teacher and its export, and commands called as a user types them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from student.cli import export as export_cli
from student.cli import train as train_cli
from student.train import step_log
from teacher_cache.build.job import build as build_cache
from teacher_cache.settings import BuildSettings
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.small_training import SMALL


@contextmanager
def told(*words: Path | str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in words])
        yield


def run(program: Any, *words: Path | str) -> int:
    """Exit code of a command line."""
    with told(program.app.name[0], *words), pytest.raises(SystemExit) as stop:
        program.main()
    return int(stop.value.code or 0)


PRESETS = ("paper", "transplant", "hybrid")


def train(folder: Path, name: str, *options: str) -> int:
    return run(train_cli, "--cache", folder / "cache", "--out", folder / name, *SMALL, *options)


def make_export(folder: Path, teacher: Path, preset: str = "paper") -> Path:
    """`cache`, `run` trained on it, `unfinished` stopped after 4 of 6 steps, and `export`."""
    carry = {} if preset == "paper" else {"carry": "body"}
    said = {
        "teacher": {"model": str(teacher), "dtype": "float32", **carry},
        "corpus": {"source": str(write_text_corpus(folder, words=9))},
        "rows": {"seq_len": 32, "count": 32},
        "targets": {"top_k": 8, "samples": 24},
    }
    build_cache(BuildSettings.model_validate(said), folder / "cache")
    student = [f"--model.preset={preset}", "--model.window=8"]
    measured = ["--evaluation.cache", str(folder / "cache"), "--evaluation.max_rows=4"]
    assert train(folder, "run", *student, *measured) == 0
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(4, patch)
        assert train(folder, "unfinished", *student) == 130
    assert run(export_cli, folder / "run", "--out", folder / "export") == 0
    return folder


def change_tokenizer(folder: Path) -> None:
    """Another token map in the same files."""
    said = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = said["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(said))


def _stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    record = step_log.record

    def stopping(run: Any, metrics: step_log.StepMetrics, *more: Any) -> None:
        record(run, metrics, *more)
        if metrics.step == step:
            raise KeyboardInterrupt

    patch.setattr(step_log, "record", stopping)
