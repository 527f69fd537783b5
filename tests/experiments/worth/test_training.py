"""A training is student-train with its settings, and what is kept of it is read from its run."""

import json
import subprocess
from pathlib import Path

import pytest

from experiments.options import FIRST_SEED
from experiments.worth import training as module
from experiments.worth.plan import WorthFolder, code_digest
from experiments.worth.students import HYBRID, HYBRID_ATTENDING, HYBRID_LONG, PAPER, PAPER_CE, PAPER_EXACT, Kind
from experiments.worth.training import MEASURES, Training
from tests.helpers.worth_results import PLAN


def test_the_command_measures_as_often_as_planned(tmp_path: Path) -> None:
    command = Training(WorthFolder(tmp_path), PLAN, HYBRID, 43).command()
    assert {"--training.seed=43", "--training.micro_batch_size=8", "--evaluation.every=4"} <= set(command)
    assert command[-1] == "--model.heads=4"


def test_longer_rows_are_fewer_and_all_students_see_equally_many_tokens(tmp_path: Path) -> None:
    short, long = (Training(WorthFolder(tmp_path), PLAN, kind, 42) for kind in (HYBRID_ATTENDING, HYBRID_LONG))
    assert short.steps == long.steps == 8
    rows, seq_len = PLAN.shape(long.kind.cache)
    assert rows * seq_len == PLAN.tokens
    assert long.kind.rows * seq_len == short.kind.rows * PLAN.seq_len


def test_each_student_is_trained_on_its_own_cache(tmp_path: Path) -> None:
    folder = WorthFolder(tmp_path)
    for kind, name in ((PAPER, "train"), (PAPER_EXACT, "train-exact")):
        command = Training(folder, PLAN, kind, 43).command()
        assert command[command.index("--cache") + 1] == str(folder.cache(name))


def test_what_is_kept_counts_tokens_up_to_each_measurement(tmp_path: Path) -> None:
    training = Training(WorthFolder(tmp_path), PLAN, PAPER, 42)
    leave_run(training)
    kept = training.read_run()
    assert [point["tokens"] for point in kept["points"]] == [0, 101, 203]
    assert (kept["code"], kept["machine"], kept["trainable_parameters"]) == (code_digest(), "a machine", 7)


def leave_run(training: Training) -> None:
    """A run of two steps, as student-train leaves it."""
    training.run.mkdir(parents=True)
    summary = {"trainable_parameters": 7, "total_parameters": 9, "teacher_measures": {}, "samples": [], "steps": 2}
    (training.run / "summary.json").write_text(json.dumps(summary))
    costs = [{"step": step, "tokens": 100 + step, "machine": "a machine"} for step in (1, 2)]
    (training.run / "costs.jsonl").write_text("\n".join(map(json.dumps, costs)))
    measured = [{"step": step, **dict.fromkeys(MEASURES, 0.5)} for step in (0, 1, 2)]
    (training.run / "evaluation.jsonl").write_text("\n".join(map(json.dumps, measured)))


@pytest.mark.parametrize(("kind", "seed"), [(HYBRID, FIRST_SEED), (HYBRID, FIRST_SEED + 1), (PAPER_CE, FIRST_SEED)])
def test_tasks_of_some_are_measured_once_and_a_run_is_not_trained_again_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, seed: int
) -> None:
    training, trained, measured = Training(WorthFolder(tmp_path), PLAN, kind, seed), [], []
    asked = (kind, seed) == (HYBRID, FIRST_SEED)

    def train(command: list[str], **_: object) -> None:
        trained.append(command)
        leave_run(training)

    def measure(run: Path, held_out: Path) -> dict[str, object]:
        measured.append((run, held_out))
        if len(measured) == 1:
            raise KeyboardInterrupt
        return {"tasks": [], "writing": []}

    monkeypatch.setattr(subprocess, "run", train)
    monkeypatch.setattr(module, "measure_tasks", measure)
    assert not training.is_done
    if asked:
        with pytest.raises(KeyboardInterrupt):
            training.carry_out()
        assert training.result.exists()
        assert not training.is_done
    training.carry_out()
    assert training.is_done
    assert trained == [training.command()]
    assert measured == [(training.run, training.folder.cache("held-out"))] * (2 if asked else 0)
    assert training.folder.tasks().keys() == ({kind.name} if asked else set())
