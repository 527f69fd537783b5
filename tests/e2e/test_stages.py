"""Training in stages: each begins where the last ended, and a run stopped anywhere is one that was never stopped."""

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from student.loss.schedule import cosine_with_warmup
from student.settings import TrainSettings
from student.train import assemble, job
from student.train.job import run_job
from student.train.processes import Processes
from student.train.summary import finish
from tests.helpers.small_training import parameters, stop_at, trace, weights
from tests.helpers.transplant_cache import TWO_STAGES, make_transplant_cache, quick_settings

PRESETS = ("transplant", "hybrid")
BORDER, END = 5, 9


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_transplant_cache(tmp_path_factory.mktemp("stages"))


def two_stages(preset: str, *options: str) -> TrainSettings:
    return quick_settings(f"--model.preset={preset}", TWO_STAGES, *options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_stopped_at_any_step_it_ends_as_if_never_stopped(
    cache: Path, alone: Processes, tmp_path: Path, preset: str, precision: str
) -> None:
    wanted = two_stages(preset, f"--training.precision={precision}", f"--evaluation.cache={cache}")
    run_job(wanted, cache, tmp_path / "whole", alone)
    out = tmp_path / "stopped"
    for step in (1, 4, BORDER, BORDER + 1, END):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(KeyboardInterrupt):
                run_job(wanted, cache, out, alone)
    run_job(wanted, cache, out, alone)
    assert trace(out) == trace(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")
    assert (out / "evaluation.jsonl").read_bytes() == (tmp_path / "whole" / "evaluation.jsonl").read_bytes()
    ours, theirs = (load_file(newest(folder) / "states.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints").iterdir())[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_float32_parameters_cross_a_border_as_they_are(
    cache: Path, alone: Processes, tmp_path: Path, precision: str
) -> None:
    """What a stage does not train keeps its float32 values, also where the student computes in 16 bits."""
    stages = "[{steps: 2}, {train: mixers, loss: transfer, steps: 1}, {train: body, steps: 1}]"
    options = [f"--training.precision={precision}", "--training.checkpoint_every=1"]
    keep_all(tmp_path / "kept", quick_settings("--model.preset=hybrid", f"--stages={stages}", *options), cache, alone)
    before, transferred, end = (parameters(tmp_path / "kept" / f"step_0000000{step}") for step in (2, 3, 4))
    new = {name for name in before if ".self_attn." in name and "_proj" not in name}
    changed = {name for name in before if not torch.equal(before[name], transferred[name])}
    assert changed
    assert changed <= new
    assert {name for name in before if not torch.equal(transferred[name], end[name])} == before.keys() - new
    rounded = {name for name in before if not torch.equal(before[name], before[name].bfloat16().float())}
    assert rounded - new, "some of the body's values need more than 16 bits"


def keep_all(folder: Path, settings: TrainSettings, cache: Path, alone: Processes) -> None:
    """Train, and keep every checkpoint, by its name, in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("student.train.checkpoint._drop_old", lambda _: None)
        run_job(settings, cache, folder / "run", alone)
    for checkpoint in (folder / "run" / "checkpoints").iterdir():
        checkpoint.rename(folder / checkpoint.name)


def test_each_stage_has_a_warmup_an_optimizer_and_a_schedule_of_its_own(
    cache: Path, alone: Processes, tmp_path: Path
) -> None:
    """α and T count from the stage's beginning; the rows go on."""
    annealed = ["--distillation.temperature_init=2", "--optimizer.warmup_ratio=0.5"]
    outcome = run_job(two_stages("transplant", *annealed), cache, tmp_path / "run", alone)
    found = trace(tmp_path / "run")
    assert [(line["step"], line["stage"], line["epoch"]) for line in found] == [
        *((step, 1, 0) for step in range(1, 6)),
        *((6, 2, 0), (7, 2, 1), (8, 2, 1), (9, 2, 1)),
    ]
    assert all(line.keys() >= {"transfer"} and not line.keys() & {"loss", "kl", "cross_entropy"} for line in found[:5])
    assert all("transfer" not in line for line in found[5:])
    rates = [cosine_with_warmup(k, peak=1e-2, warmup_steps=3, total_steps=5) for k in range(5)]
    rates += [cosine_with_warmup(k, peak=3e-3, warmup_steps=2, total_steps=4) for k in range(4)]
    assert [line["learning_rate"] for line in found] == pytest.approx(rates)
    assert [line["temperature"] for line in found[5:]] == pytest.approx([1 + 1 / (1 + math.log1p(k)) for k in range(4)])
    counts = [int(outcome.run.reader.read(step).loss_mask.sum()) for step in range(END)]
    assert [line["tokens"] for line in found] == counts
    tensors = load_file(newest(tmp_path / "run") / "states.safetensors")
    state = json.loads((newest(tmp_path / "run") / "state.json").read_text())
    assert (state["stage"], state["updates"], state["earlier_updates"]) == (2, 4, 5)
    assert any(name.startswith("exp_avg/") for name in tensors)


def test_transfer_brings_a_student_nearer_to_its_teacher(cache: Path, alone: Processes, tmp_path: Path) -> None:
    stages = "[{train: mixers, loss: transfer, steps: 30, learning_rate: 1.0e-2}, {steps: 2}]"
    wanted = quick_settings("--model.preset=transplant", f"--stages={stages}", f"--evaluation.cache={cache}")
    outcome = run_job(wanted, cache, tmp_path / "run", alone)
    losses = [line["transfer"] for line in trace(tmp_path / "run")[:30]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    before, transferred, after = (record["kl"] for record in outcome.run.measurements.read())
    assert transferred < before
    assert after != transferred


ALPHA, BETA = "--distillation.alpha_{}", "--distillation.frobenius.weight_{}"
TERMS: dict[str, tuple[str, list[str]]] = {
    "all, annealed": (
        "cross_entropy",
        [f"{ALPHA.format('final')}=0.2", "--distillation.temperature_init=2", f"{BETA.format('init')}=0.2"],
    ),
    "cross-entropy alone": ("cross_entropy", [f"{ALPHA.format(at)}=0" for at in ("init", "final")]),
    "teacher alone": ("kl", [f"{ALPHA.format(at)}=1" for at in ("init", "final")]),
    "Frobenius alone": (
        "frobenius",
        [f"{name.format(at)}={value}" for name, value in ((ALPHA, 0), (BETA, 1)) for at in ("init", "final")],
    ),
}
"""By name: what falls, and settings."""


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_term_of_the_loss_is_learnt_from(
    cache: Path, alone: Processes, tmp_path: Path, preset: str, terms: str
) -> None:
    """Each step is over all rows; its loss is made of the terms as Eq. 38 says."""
    falls, options = TERMS[terms]
    rows = ["--training.gradient_accumulation=3", "--training.micro_batch_size=8", "--training.epochs=8"]
    fixed = ["--distillation.restart_each_epoch=false", "--distillation.delta=0", "--optimizer.learning_rate=1e-2"]
    run_job(quick_settings(f"--model.preset={preset}", *rows, *fixed, *options), cache, tmp_path, alone)
    found = trace(tmp_path)
    for line in found:
        weight = 1 - line["alpha"] - line["beta"]
        parts = weight * line["cross_entropy"], line["alpha"] * line["temperature"] ** 2 * line["kl"]
        assert line["loss"] == pytest.approx(sum(parts) + line["beta"] * line["frobenius"], rel=1e-4)
    assert found[-1][falls] < 0.995 * found[0][falls]
    if terms == "all, annealed":
        assert all(found[-1][name] < found[0][name] for name in ("alpha", "temperature", "beta"))


def test_what_a_run_leaves_says_its_stages(
    cache: Path, alone: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run_job(two_stages("hybrid", f"--evaluation.cache={cache}"), cache, tmp_path, alone))
    names = [
        {"name": "attention transfer", "train": "mixers", "steps": 5},
        {"name": "distillation", "train": "all", "steps": 4},
    ]
    for file in ("plan.json", "summary.json"):
        assert json.loads((tmp_path / file).read_text())["stages"] == names
    said = capsys.readouterr()
    assert "after 5 steps" in said.out
    assert "stage 2 of 2: distillation" in said.err


def test_other_stages_are_another_run(cache: Path, alone: Processes, tmp_path: Path) -> None:
    run_job(two_stages("hybrid"), cache, tmp_path, alone)
    other = quick_settings("--model.preset=hybrid", TWO_STAGES.replace("steps: 5", "steps: 6"))
    with pytest.raises(UserError, match=r"a checkpoint with stages\.0\.steps 5, now 6; set it back"):
        run_job(other, cache, tmp_path, alone)


def test_no_two_students_and_no_teacher_are_held_while_training(cache: Path, alone: Processes, tmp_path: Path) -> None:
    """Of the teacher, named by `model.teacher`, and of the student of a stage before, nothing is left."""
    held: list[weakref.ref[Any]] = []
    left: list[int] = []
    load, make, train = AutoModelForCausalLM.from_pretrained, assemble.initial_student, job.train

    def kept(made: Any) -> Any:
        held.append(weakref.ref(made))
        return made

    def counting(*arguments: Any) -> Any:
        gc.collect()
        left.append(sum(reference() is not None for reference in held))
        return train(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **b: kept(load(*a, **b)))
        patch.setattr(assemble, "initial_student", lambda *a: kept(make(*a)))
        patch.setattr(job, "train", counting)
        run_job(two_stages("hybrid", f"--model.teacher={cache.parent / 'teacher'}"), cache, tmp_path, alone)
    assert len(held) == 3, "the teacher, and a student for each stage"
    assert left == [1, 1]


@pytest.mark.parametrize(
    ("stages", "options", "said"),
    [
        (
            "[{steps: 40}, {}]",
            ["--training.epochs=5"],
            r"stages\.0: .* take 40 steps .* 5 of 6 steps allows 30; .*epochs",
        ),
        (
            "[{steps: 4}, {}]",
            ["--training.max_steps=4"],
            r"stages\.1: .*max_steps 4 allows 4; .*training\.max_steps$",
        ),
        ("[{steps: 1, distillation: {temperature_init: 3}}]", [], r"stages\.0\.distillation\.temperature_init: .* 3"),
    ],
)
def test_stages_that_do_not_fit_the_cache_are_one_line(
    cache: Path, alone: Processes, tmp_path: Path, stages: str, options: list[str], said: str
) -> None:
    wanted = quick_settings("--model.preset=hybrid", f"--stages={stages}", *options)
    with pytest.raises(UserError, match=said):
        run_job(wanted, cache, tmp_path / "run", alone)
    assert not (tmp_path / "run").exists()
