"""Students that begin as their teacher: train, stop and continue, measure; what does not fit is one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from student.evaluate.trained import load_student
from student.export.write import export_student
from student.model.transplant.student import build_transplant
from student.run.files import read_summary
from student.run.student import initial_student
from student.settings import TrainSettings
from student.train.job import run_job
from student.train.processes import Processes, joined_processes, quiet_deepspeed
from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.settings import BuildSettings
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import save_family
from tests.helpers.small_training import trace

CPU = torch.device("cpu")
LONGER = ["--training.max_steps=60", "--training.checkpoint_every=20"]
QUICK = [
    *("--training.micro_batch_size=4", "--training.gradient_accumulation=1", "--training.max_steps=6"),
    *("--training.checkpoint_every=2", "--optimizer.learning_rate=3e-3", "--distillation.frobenius.weight_init=0"),
    *("--distillation.frobenius.weight_final=0",),
]


def build_settings(folder: Path, **sections: Any) -> BuildSettings:
    base: dict[str, Any] = {
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "corpus": {"source": str(folder / "texts")},
        "rows": {"seq_len": 32, "count": 24},
        "hidden": {"mean": "none"},
        "compute": {"batch_size": 8, "rows_per_shard": 8},
    }
    return BuildSettings.model_validate({key: base[key] | sections.get(key, {}) for key in base})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and caches of it with its body and without."""
    made = tmp_path_factory.mktemp("transplant")
    save_family("Llama", made / "teacher")
    write_text_corpus(made)
    build(build_settings(made, teacher={"carry": "body"}), made / "cache")
    build(build_settings(made), made / "bare")
    return made


@pytest.fixture(scope="module")
def alone() -> Any:
    with quiet_deepspeed(), joined_processes() as processes:
        yield processes


def settings(*options: str) -> TrainSettings:
    return load_settings(TrainSettings, None, [*QUICK, *options])


def test_a_cache_carries_its_teachers_body_where_asked(folder: Path) -> None:
    cache, bare = open_cache(folder / "cache"), open_cache(folder / "bare")
    assert bare.body_weights is None
    assert bare.teacher_config is None
    assert cache.body_weights is not None
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    wanted = {name: t for name, t in model.model.state_dict().items() if name != "embed_tokens.weight"}
    found = load_file(cache.body_weights)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(UserError, match=r"teacher.carry|teacher/body.safetensors"):
        build(build_settings(folder, teacher={"carry": "body"}), folder / "bare")


def test_a_window_as_wide_as_the_row_is_the_teacher(folder: Path) -> None:
    """The recurrence then sees nothing: logits are the teacher's."""
    cache = open_cache(folder / "cache")
    student = initial_student(settings("--model.preset=hybrid", "--model.window=32"), cache, CPU)
    tokens = torch.from_numpy(cache.rows(range(4)).tokens[:, :-1].astype("int64"))
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32).eval()
    with torch.no_grad():
        ours, theirs = student.logits(student(tokens)), model(tokens).logits[..., : student.vocab_size]
    assert float((ours - theirs).abs().max()) < 2e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("preset", ["transplant", "hybrid"])
def test_it_learns_and_continues_to_the_bit_where_it_was_stopped(
    folder: Path, alone: Processes, tmp_path: Path, preset: str
) -> None:
    options = [f"--model.preset={preset}", "--model.window=8", "--optimizer.body_learning_rate=1e-4"]
    wanted = settings(*options, "--distillation.temperature_init=1", "--optimizer.learning_rate=1e-2", *LONGER)
    run_job(wanted, folder / "cache", tmp_path / "whole", alone)
    kl = [line["kl"] for line in trace(tmp_path / "whole")]
    assert sum(kl[-6:]) < 0.9 * sum(kl[:6])
    short = wanted.model_copy(update={"training": wanted.training.model_copy(update={"epochs": 10})})
    run_job(short, folder / "cache", tmp_path / "again", alone)
    for checkpoint in sorted((tmp_path / "again" / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    (tmp_path / "again" / "trained.safetensors").unlink()
    run_job(short, folder / "cache", tmp_path / "again", alone)
    ours, theirs = (load_file(tmp_path / name / "trained.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_with_no_learning_rate_the_teachers_weights_stay(folder: Path, alone: Processes, tmp_path: Path) -> None:
    wanted = settings("--model.preset=transplant", "--optimizer.body_learning_rate=0")
    run_job(wanted, folder / "cache", tmp_path / "run", alone)
    body = open_cache(folder / "cache").body_weights
    assert body is not None
    found, before = load_file(tmp_path / "run" / "trained.safetensors"), load_file(body)
    assert all(torch.equal(found[name], before[name]) for name in before)
    new = found.keys() - before.keys()
    assert any(float(found[name].abs().max()) > 0 for name in new)


@pytest.mark.parametrize("stages", ["[]", "[{train: mixers, loss: transfer, steps: 3}, {train: mixers}]"])
def test_a_run_is_measured_and_exported_without_the_body(
    folder: Path, alone: Processes, tmp_path: Path, stages: str
) -> None:
    wanted = settings("--model.preset=hybrid", "--model.window=8", f"--stages={stages}")
    outcome = run_job(wanted, folder / "cache", tmp_path / "run", alone)
    from student.train.summary import finish

    finish(outcome)
    loaded = load_student(tmp_path / "run", open_cache(folder / "bare"), CPU).model
    stored = load_file(tmp_path / "run" / "trained.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.named_parameters())
    export_student(tmp_path / "run", tmp_path / "export", str(folder / "cache"))
    exported = load_student(tmp_path / "export", open_cache(folder / "bare"), CPU).model
    tokens = torch.arange(60).view(2, 30)
    assert torch.equal(exported(tokens), loaded(tokens))
    new, sizes = loaded.new_names(), {name: tensor.numel() for name, tensor in stored.items()}
    trained = sum(sizes.values()) if stages == "[]" else sum(sizes[name] for name in new)
    assert read_summary(tmp_path / "run").trainable_parameters == trained
    said = "attention transfer of the mixers, 3 steps; distillation of the mixers, 3 steps"
    assert (said in (tmp_path / "export" / "README.md").read_text()) == (stages != "[]")
    assert (said in (tmp_path / "run" / "report.html").read_text()) == (stages != "[]")


def test_the_teacher_may_be_named_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = open_cache(folder / "bare")
    named = initial_student(settings("--model.preset=transplant", f"--model.teacher={folder / 'teacher'}"), bare, CPU)
    carried = initial_student(settings("--model.preset=transplant"), open_cache(folder / "cache"), CPU)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), carried.parameters(), strict=True))
    other = save_family("Llama", tmp_path / "other", initializer_range=0.3)
    with pytest.raises(UserError, match=r"model.teacher .*: its weights are not those of "):
        initial_student(settings("--model.preset=transplant", f"--model.teacher={other}"), bare, CPU)


@pytest.mark.parametrize("source", ["cache", "bare"])
def test_the_body_is_copied_in_host_memory_and_the_student_then_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """No device holds the teacher beside the student; another device is here one without memory."""
    bodies: list[Any] = []

    def noted(config: Any, frozen: Any, body: Any, *more: Any, **named: Any) -> Any:
        bodies.append(body)
        return build_transplant(config, frozen, body, *more, **named)

    monkeypatch.setattr("student.run.student.build_transplant", noted)
    options = [] if source == "cache" else [f"--model.teacher={folder / 'teacher'}"]
    wanted = settings("--model.preset=hybrid", "--model.window=8", *options)
    student = initial_student(wanted, open_cache(folder / source), torch.device("meta"))
    assert {tensor.device.type for tensor in bodies[0].values()} == {"cpu"}
    assert {tensor.device.type for tensor in (*student.parameters(), *student.buffers())} == {"meta"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model.preset=transplant"],
            r"does not carry its teacher's body; name the teacher with --model.teacher, or",
        ),
        (["--model.preset=transplant", "--model.teacher=./nowhere"], r"model.teacher ./nowhere: cannot be loaded"),
    ],
)
def test_a_student_without_a_body_is_one_line(folder: Path, options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        initial_student(settings(*options), open_cache(folder / "bare"), CPU)


def test_a_window_longer_than_the_row_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model.window 33 is longer than the cache's rows of 32"):
        initial_student(settings("--model.preset=hybrid", "--model.window=33"), open_cache(folder / "cache"), CPU)


def test_a_teacher_whose_layers_do_not_fit_is_refused(tmp_path: Path) -> None:
    save_family("GPTNeoX", tmp_path / "teacher")
    write_text_corpus(tmp_path)
    build(build_settings(tmp_path, teacher={"carry": "body"}), tmp_path / "cache")
    with pytest.raises(UserError, match=r"decoder layers of 'gpt_neox' cannot be built on; those that can: llama"):
        initial_student(settings("--model.preset=transplant"), open_cache(tmp_path / "cache"), CPU)


def test_a_body_learning_rate_is_for_students_with_a_body(tmp_path: Path, alone: Processes) -> None:
    cache = make_synthetic_cache(tmp_path / "cache", rows=8, seq_len=8, vocab_size=64, top_k=4, rows_per_shard=8)
    with pytest.raises(UserError, match=r"optimizer.body_learning_rate: this student begins without"):
        run_job(settings("--optimizer.body_learning_rate=1e-3"), cache, tmp_path / "run", alone)
