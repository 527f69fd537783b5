"""Training that begins with another run's parameters, or an export's: exact, resumable, and written down as a chain."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from delta_common.errors import UserError
from student.export.write import export_student
from student.model.student import is_beside
from student.run.files import read_summary
from student.settings import TrainSettings
from student.train import job
from student.train.job import run_job
from student.train.processes import Processes, quiet_deepspeed
from student.train.summary import finish
from tests.helpers.small_training import (
    make_uneven_cache,
    newest,
    parameters,
    small_settings,
    stop_at,
    trace,
    weights,
)
from tests.helpers.transplant_cache import make_transplant_cache, quick_settings

TRANSFER = "--stages=[{train: mixers, loss: transfer, steps: 2, learning_rate: 1.0e-2}]"
DISTIL = "--stages=[{steps: 2, body_learning_rate: 1.0e-3}]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, only_process: Processes) -> Path:
    """`cache` with its teacher's body, `bare` without, and `first`, a run of attention transfer in bf16."""
    made = tmp_path_factory.mktemp("init")
    make_transplant_cache(made)
    bare = {"model": str(made / "teacher"), "dtype": "float32"}
    make_transplant_cache(made / "without", teacher=bare).rename(made / "bare")
    with quiet_deepspeed():
        finish(run_job(hybrid(TRANSFER), made / "cache", made / "first", only_process))
    return made


def hybrid(*options: str) -> TrainSettings:
    return quick_settings("--model.preset=hybrid", "--training.precision=bf16", *options)


def begun_with(settings: TrainSettings, cache: Path, out: Path, alone: Processes, origin: Path) -> dict[str, Any]:
    """The float32 parameters that a run begins with, before its first step."""
    found: dict[str, Any] = {}

    class BegunError(Exception):
        pass

    def train(run: Any, start: Any) -> None:
        from student.train.master_states import gathered_states

        states = gathered_states(run.engine, updates=0, untrained=run.untrained)
        found.update({name[10:]: tensor.clone() for name, tensor in states})
        raise BegunError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "train", train)
        with pytest.raises(BegunError):
            run_job(settings, cache, out, alone, origin)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stages", [TRANSFER, DISTIL])
def test_a_run_begins_with_the_others_float32_parameters(
    folder: Path, alone: Processes, tmp_path: Path, precision: str, stages: str
) -> None:
    wanted = quick_settings("--model.preset=hybrid", f"--training.precision={precision}", stages)
    found, expected = (
        begun_with(wanted, folder / "cache", tmp_path / "run", alone, folder / "first"),
        parameters(newest(folder / "first")),
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in expected.values())


def test_the_body_comes_from_there_and_a_resume_does_not_read_it_again(
    folder: Path, alone: Processes, tmp_path: Path
) -> None:
    """The cache does not carry the body, and names the teacher by its digest."""
    origin = shutil.copytree(folder / "first", tmp_path / "origin")
    wanted = hybrid(DISTIL.replace("steps: 2", "steps: 4"))
    run_job(wanted, folder / "bare", tmp_path / "whole", alone, origin)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run_job(wanted, folder / "bare", tmp_path / "stopped", alone, origin)
    shutil.rmtree(origin)
    outcome = run_job(wanted, folder / "bare", tmp_path / "stopped", alone, origin)
    assert outcome.resumed_at == 2
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    finish(outcome)
    (origin_of,) = read_summary(tmp_path / "stopped").begun_from
    assert (origin_of.path, origin_of.steps) == (str(origin), 2)


def test_a_chain_is_written_down_over_a_run_and_an_export(folder: Path, alone: Processes, tmp_path: Path) -> None:
    cache = folder / "cache"
    finish(run_job(hybrid(DISTIL), cache, tmp_path / "second", alone, folder / "first"))
    export_student(tmp_path / "second", tmp_path / "export")
    third = hybrid("--training.max_steps=1")
    found = begun_with(third, cache, tmp_path / "probe", alone, tmp_path / "export")
    stored = load_file(tmp_path / "second" / "trained.safetensors")
    assert all(torch.equal(found[name], stored[name].float()) for name in stored)
    finish(run_job(third, cache, tmp_path / "third", alone, tmp_path / "export"))
    fourth = run_job(third, cache, tmp_path / "fourth", alone, tmp_path / "third")
    chain = json.loads((tmp_path / "fourth" / "provenance.json").read_text())["begun_from"]
    assert [(link["kind"], link["steps"]) for link in chain] == [("run", 2), ("export", 2), ("run", 1)]
    assert [link["path"] for link in chain] == [
        str(path) for path in (folder / "first", tmp_path / "export", tmp_path / "third")
    ]
    assert {link["cache_fingerprint"] for link in chain} == {fourth.run.cache.fingerprint}
    assert len({link["settings_sha256"] for link in chain}) == 3
    assert read_summary(tmp_path / "third").model_dump(mode="json")["begun_from"] == chain[:2]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory, only_process: Processes) -> Path:
    """`cache`, and `run`, a finished run of a block stack."""
    made = tmp_path_factory.mktemp("paper")
    make_uneven_cache(made / "cache")
    with quiet_deepspeed():
        finish(run_job(small_settings(), made / "cache", made / "run", only_process))
    return made


def test_a_block_stack_begins_with_anothers_parameters(paper: Path, alone: Processes, tmp_path: Path) -> None:
    begun = begun_with(small_settings(), paper / "cache", tmp_path / "run", alone, paper / "run")
    expected = parameters(newest(paper / "run"))
    own = [name for name in expected if not is_beside(name)]
    assert len(own) == len(expected) - 2
    assert all(torch.equal(begun[name], expected[name]) for name in own)
    assert torch.equal(begun["state_map.weight"], torch.eye(len(begun["state_map.bias"]))), "a map begins anew"


def test_another_beginning_is_another_run(paper: Path, alone: Processes, tmp_path: Path) -> None:
    wanted, cache, out = small_settings("--training.max_steps=1"), paper / "cache", tmp_path / "run"
    run_job(wanted, cache, out, alone, paper / "run")
    other = shutil.copytree(paper / "run", tmp_path / "other")
    for given, said in ((other, f"now with --init-from {other}; give the same"), (None, "now without --init-from")):
        with pytest.raises(UserError, match=f"begun with --init-from {paper / 'run'}, {said}"):
            run_job(wanted, cache, out, alone, given)
    run_job(wanted, cache, tmp_path / "fresh", alone)
    with pytest.raises(UserError, match="begun without --init-from, now with --init-from"):
        run_job(wanted, cache, tmp_path / "fresh", alone, other)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model.preset=heuristic"],
            "model.preset paper, and these settings say model.preset heuristic; set model",
        ),
        (
            ["--model.blocks=3"],
            r"stack.blocks.2\S* is nothing of it there, and \[.*\] in the student",
        ),
        (["--model.conv_kernel=3"], r"conv1d.conv.weight is \[32, 1, 4\] there, and \[32, 1, 3\] in the student"),
    ],
)
def test_another_student_is_one_line(
    paper: Path, alone: Processes, tmp_path: Path, options: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=f"--init-from {paper / 'run'}: .*{said}"):
        run_job(small_settings(*options), paper / "cache", tmp_path / "run", alone, paper / "run")


def test_another_teacher_is_one_line(paper: Path, folder: Path, alone: Processes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another teacher than .* has; give a cache of the same"):
        run_job(small_settings(), folder / "cache", tmp_path / "run", alone, paper / "run")


def test_a_run_does_not_begin_from_itself(paper: Path, alone: Processes) -> None:
    with pytest.raises(UserError, match="is also --out; a run begins in a folder of its own"):
        run_job(small_settings(), paper / "cache", paper / "run", alone, paper / "run")
