"""A student around a cache: the cache's matrices, the settings' shape, seed and precision."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.evaluate.held_out import measure_held_out, rows_in_order
from student.evaluate.trained import load_student
from student.export.write import export_student
from student.inference.generate import generate_tokens
from student.inference.load import load_model
from student.run.student import DTYPES, initial_student, teacher_head
from student.train.job import run_job
from student.train.processes import Processes
from student.train.summary import finish
from teacher_cache.build.job import build
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import save_family
from tests.helpers.small_training import VOCAB, WIDTH, small_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher`, a model that scales its embedding, and `cache` of it."""
    folder = tmp_path_factory.mktemp("gemma")
    said = {
        "teacher": {"model": str(save_family("Gemma", folder / "teacher")), "dtype": "float32"},
        "corpus": {"source": str(write_text_corpus(folder, words=9))},
        "rows": {"seq_len": 16, "count": 8},
        "targets": {"top_k": 8, "samples": 8},
    }
    build(BuildSettings.model_validate(said), folder / "cache")
    return folder


def test_the_first_block_reads_what_the_teachers_first_layer_does(gemma: Path) -> None:
    cache = open_cache(gemma / "cache")
    tokens = torch.from_numpy(cache.rows(range(8)).tokens[:, :-1].astype("int64"))
    teacher = AutoModelForCausalLM.from_pretrained(gemma / "teacher", dtype=torch.float32).eval()
    student = initial_student(small_settings(), cache, CPU)
    with torch.no_grad():
        seen = teacher(tokens, output_hidden_states=True).hidden_states[0]
        assert torch.allclose(student.embed(tokens), seen, rtol=1e-4, atol=0)


def test_the_export_of_a_run_reads_the_same(gemma: Path, alone: Processes, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "export"
    finish(run_job(small_settings("--training.max_steps=1"), gemma / "cache", run, alone))
    export_student(run, out)
    cache = open_cache(gemma / "cache")
    tokens = torch.from_numpy(cache.rows(range(2)).tokens.astype("int64"))
    trained, exported = (load_student(path, cache, CPU).model for path in (run, out))
    model = load_model(out, torch.float32)
    assert model.config.embedding_scale == pytest.approx(32**0.5, rel=1e-3)
    with torch.no_grad():
        expected = trained(tokens)
        assert torch.equal(exported(tokens), expected)
        first = model(tokens[:, :9])
        then = model(tokens[:, 9:10], past_key_values=first.past_key_values)
        found = torch.cat([first.logits, then.logits], dim=1)
        assert torch.allclose(found, model.student.logits(expected[:, :10]), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher`, a model with a soft cap of 3 behind its head; `cache` of it, and `exact` in exact mode."""
    folder = tmp_path_factory.mktemp("capped")
    model = str(save_family("Gemma2", folder / "teacher"))
    said = {
        "teacher": {"model": model, "dtype": "float32", "attention": "eager"},
        "corpus": {"source": str(write_text_corpus(folder, words=9))},
        "rows": {"seq_len": 16, "count": 8},
    }
    build(BuildSettings.model_validate(said | {"targets": {"top_k": 8, "samples": 8}}), folder / "cache")
    build(BuildSettings.model_validate(said | {"targets": {"mode": "exact"}}), folder / "exact")
    return folder


@pytest.mark.parametrize(("option", "transform"), [("teacher", LogitTransform(cap=3.0)), ("none", None)])
@pytest.mark.parametrize("preset", ["paper", "heuristic"])
def test_behind_the_head_a_student_does_what_its_teacher_does_or_nothing(
    capped: Path, option: str, transform: LogitTransform | None, preset: str
) -> None:
    settings = small_settings(f"--model.preset={preset}", f"--model.head_transform={option}")
    student = initial_student(settings, open_cache(capped / "cache"), CPU)
    assert student.head.transform == transform
    logits = student.logits(20 * torch.randn(5, 32))
    assert (float(logits.detach().abs().max()) <= 3) == (option == "teacher")


@pytest.mark.parametrize(("option", "is_needed"), [("teacher", False), ("none", True)])
def test_a_student_without_the_cap_needs_the_teachers_head_beside_its_own(
    capped: Path, option: str, is_needed: bool
) -> None:
    exact, sampled = open_cache(capped / "exact"), open_cache(capped / "cache")
    student = initial_student(small_settings(f"--model.head_transform={option}"), exact, CPU)
    assert teacher_head(student, [sampled], CPU, torch.float32) is None
    head = teacher_head(student, [sampled, exact], CPU, torch.float32)
    assert (head is not None) == is_needed
    assert head is None or head.transform == LogitTransform(cap=3.0)


@pytest.mark.parametrize("option", ["teacher", "none"])
@pytest.mark.parametrize("mode", ["cache", "exact"])
def test_training_export_evaluation_and_generation_agree_on_the_cap(
    capped: Path, alone: Processes, tmp_path: Path, option: str, mode: str
) -> None:
    run, out, cache = tmp_path / "run", tmp_path / "export", open_cache(capped / mode)
    given = ("--training.max_steps=2", f"--model.head_transform={option}", f"--evaluation.cache={cache.path}")
    outcome = run_job(small_settings(*given), capped / mode, run, alone)
    finish(outcome)
    export_student(run, out)
    trained, exported, model = (
        load_student(run, cache, CPU),
        load_student(out, cache, CPU),
        load_model(out, torch.float32),
    )
    assert model.config.logit_transform == ({"scale": 1.0, "cap": 3.0} if option == "teacher" else None)
    tokens = torch.from_numpy(cache.rows(range(2)).tokens.astype("int64"))
    with torch.no_grad():
        expected = trained.model.head.logits(trained.model(tokens))
        assert torch.equal(exported.model.head.logits(exported.model(tokens)), expected)
        assert torch.allclose(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert (float(expected.abs().max()) <= 3) == (option == "teacher")
    found = [
        measure_held_out(each.model, cache, rows_in_order(cache, 4), CPU, teacher_head=each.teacher_head)
        for each in (trained, exported)
    ]
    assert outcome.after is not None
    for each in found:
        assert each.student.kl is not None
        assert each.student.kl.value == pytest.approx(outcome.after.kl, rel=1e-4)
    prompt = tokens[0, :5].tolist()
    assert generate_tokens(trained.model, prompt, max_new_tokens=6) == generate_tokens(
        model.student, prompt, max_new_tokens=6
    )


@pytest.mark.parametrize("option", ["teacher", "none"])
def test_both_modes_train_towards_the_same_teacher(capped: Path, option: str) -> None:
    """The exact mode's KL at T = 1 is what the sampled one estimates; without the cap it would be another teacher's."""
    kl = []
    for mode in ("cache", "exact"):
        cache = open_cache(capped / mode)
        student = initial_student(small_settings(f"--model.head_transform={option}"), cache, CPU).eval()
        head = teacher_head(student, [cache], CPU, torch.float32)
        found = measure_held_out(student, cache, rows_in_order(cache, 8), CPU, teacher_head=head).student.kl
        assert found is not None
        kl.append(found.value)
    assert kl[0] == pytest.approx(kl[1], rel=0.1)


def test_the_frozen_matrices_are_the_caches(uneven_cache: Path) -> None:
    cache = open_cache(uneven_cache)
    student = initial_student(small_settings(), cache, CPU)
    assert torch.equal(student.embedding, load_file(cache.frozen_weights)["embedding.weight"].float())
    assert student.head.weight.shape == (VOCAB, WIDTH)
    assert len(student.stack.blocks) == 2


@pytest.mark.parametrize("precision", DTYPES)
def test_all_of_it_is_in_the_runs_precision(uneven_cache: Path, precision: str) -> None:
    student = initial_student(small_settings("--training.precision", precision), open_cache(uneven_cache), CPU)
    tensors = [*student.parameters(), *student.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {DTYPES[precision]}


def test_the_seed_decides_the_weights(uneven_cache: Path) -> None:
    cache = open_cache(uneven_cache)
    one, same, other = (
        initial_student(small_settings("--training.seed", seed), cache, CPU).state_dict() for seed in ("1", "1", "2")
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_shape_that_does_not_fit_is_refused(uneven_cache: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.heads 5 does not divide"):
        initial_student(small_settings("--model.heads", "5"), open_cache(uneven_cache), CPU)
