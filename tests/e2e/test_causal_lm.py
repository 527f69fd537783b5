"""Students that are models of transformers: train, stop and continue, measure, export, write; what does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cached_distillation import CacheDataset, CacheLoader
from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.cli.generate import generate
from student.evaluate.trained import load_student
from student.export.write import export_student
from student.run.files import read_summary
from student.run.student import initial_student
from student.train import loop
from student.train.assemble import assemble
from student.train.job import run_job
from student.train.processes import Processes
from student.train.summary import finish
from teacher_cache.read.cache import open_cache
from tests.helpers.causal_students import causal_settings, save_llama
from tests.helpers.families import save_family
from tests.helpers.several_jobs import launch, let_fp16_run_on_a_cpu, stage_file
from tests.helpers.small_llama import COEFFICIENTS, assert_same_gradients, naive_step
from tests.helpers.small_training import stop_at, trace, weights
from tests.helpers.tokenizers_for_tests import byte_tokenizer
from tests.helpers.transplant_cache import make_transplant_cache

CPU = torch.device("cpu")
NARROW = {"vocab_size": 250, "eos_token_id": None, "pad_token_id": None}
DOCUMENTS = {"rows": {"seq_len": 32, "count": 24, "context": "document"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cache` of a teacher that saw each document by itself, and `llama`, a student of another size."""
    folder = tmp_path_factory.mktemp("causal-lm")
    make_transplant_cache(folder, **DOCUMENTS)
    save_llama(folder / "llama", tie_word_embeddings=True)
    save_family("Gemma2", folder / "capped", initializer_range=0.3)
    return folder


def student_options(made: Path, kind: str) -> list[str]:
    folder = made / ("capped" if kind == "capped" else "llama")
    return ["--model.preset=transformer"] if kind == "transformer" else [f"--model.hf={folder}"]


KINDS = ("hf", "transformer")
CAP = LogitTransform(cap=3.0)
"""Of `capped`."""


def gradients_of_step(
    made: Path, student: Path, out: Path, alone: Processes, *options: str
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first step of `student-train`."""
    wanted = causal_settings(f"--model.hf={student}", "--optimizer.gradient_clipping=0", *options)
    run = assemble(wanted, open_cache(made / "cache"), out, alone)
    found: dict[str, Tensor] = {}
    for name, parameter in run.student.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: found.__setitem__(name, p.grad.clone()))
    with loop.step_batches(run, 0) as batches:
        metrics = loop.take_step(run, next(batches), [COEFFICIENTS], 0, 0)
    return metrics.loss, found


@pytest.mark.parametrize("recompute", ["false", "true"])
@pytest.mark.parametrize(("name", "transform"), [("llama", None), ("capped", CAP)])
def test_a_step_is_the_naive_twins(
    made: Path, tmp_path: Path, alone: Processes, recompute: str, name: str, transform: LogitTransform | None
) -> None:
    """And so that of a loop of one's own, Trainer and SFTTrainer, which `test_any_trainer` holds to the same."""
    found, gradients = gradients_of_step(made, made / name, tmp_path, alone, f"--training.recompute={recompute}")
    model = AutoModelForCausalLM.from_pretrained(made / name, dtype=torch.float32)
    batches = next(CacheLoader(CacheDataset(made / "cache"), batch_size=2, accumulation=2).steps())
    assert batches[0].document_start is not None
    loss, expected = naive_step(model, model.get_output_embeddings(), batches, transform)
    assert found == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(gradients, expected)
    assert "model.embed_tokens.weight" in gradients


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_step_it_ends_as_if_never_stopped(
    made: Path, alone: Processes, tmp_path: Path, kind: str, precision: str
) -> None:
    """And the model that it began as is not read again."""
    shutil.copytree(made / "llama", tmp_path / "llama")
    options = student_options(tmp_path, kind)
    wanted = causal_settings(*options, f"--training.precision={precision}", f"--evaluation.cache={made / 'cache'}")
    run_job(wanted, made / "cache", tmp_path / "whole", alone)
    for step in (1, 3, 6):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(KeyboardInterrupt):
                run_job(wanted, made / "cache", tmp_path / "out", alone)
        if step == 3:
            shutil.rmtree(tmp_path / "llama")
    run_job(wanted, made / "cache", tmp_path / "out", alone)
    assert trace(tmp_path / "out") == trace(tmp_path / "whole")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    first, last = (json.loads(line) for line in (tmp_path / "out" / "evaluation.jsonl").read_text().splitlines())
    assert last["kl"] < first["kl"]


@pytest.mark.parametrize("kind", [*KINDS, "capped"])
def test_a_run_is_measured_exported_and_written_with(
    made: Path, alone: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    wanted = causal_settings(*student_options(made, kind), f"--evaluation.cache={made / 'cache'}")
    outcome = run_job(wanted, made / "cache", tmp_path / "run", alone)
    finish(outcome)
    summary = read_summary(tmp_path / "run")
    assert len(summary.samples) == 3
    of_hf = "a model of transformers of which everything is trained"
    said = {"hf": of_hf, "capped": of_hf, "transformer": "blocks of the teacher"}
    assert said[kind] in (tmp_path / "run" / "report.html").read_text()
    export_student(tmp_path / "run", tmp_path / "export")
    export_student(tmp_path / "run", tmp_path / "export")  # an earlier one is replaced
    assert said[kind] in (tmp_path / "export" / "README.md").read_text()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    cache = open_cache(made / "cache")
    tokens = torch.arange(60).view(2, 30)
    for path in (tmp_path / "run", tmp_path / "export"):
        student = load_student(path, cache, CPU).model
        assert torch.allclose(student.logits(student(tokens)), plain(tokens).logits[..., : cache.manifest.vocab_size])
    assert summary.logit_transform == (CAP if kind == "capped" else None)
    assert AutoTokenizer.from_pretrained(tmp_path / "export").get_vocab() == byte_tokenizer().get_vocab()
    stored = load_file(tmp_path / "run" / "trained.safetensors")
    assert summary.trainable_parameters == sum(tensor.numel() for tensor in stored.values())
    assert plain.config.vocab_size == cache.manifest.vocab_size, "without rows for padding"
    if kind == "transformer":
        frozen = load_file(cache.frozen_weights)["embedding.weight"]
        assert torch.equal(plain.get_input_embeddings().weight, frozen[: cache.manifest.vocab_size])
        assert not any("embed" in name or "lm_head" in name for name in stored)
    written = []
    for path in (tmp_path / "run", tmp_path / "export"):
        capsys.readouterr()
        generate(path, prompt=("Once", "It was"), temperature=0, max_new_tokens=8)
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    ids = AutoTokenizer.from_pretrained(tmp_path / "export")("Once", return_tensors="pt").input_ids
    own = AutoTokenizer.from_pretrained(tmp_path / "export").decode(
        plain.generate(ids, max_new_tokens=8, do_sample=False)[0]
    )
    assert written[0].startswith(own)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_in_every_stage_train_to_the_trace_of_one(
    made: Path, alone: Processes, tmp_path: Path, kind: str
) -> None:
    options = [*student_options(made, kind), f"--evaluation.cache={made / 'cache'}", "--training.max_steps=3"]
    stages = [stage_file(tmp_path, stage) for stage in range(4)]
    two = ["--training.micro_batch_size=1"]
    jobs = [
        {
            "cache": str(made / "cache"),
            "out": str(tmp_path / f"two {stage}"),
            "options": [*options, *two, f"--deepspeed={file}"],
            "stop_at": None,
            "causal": True,
        }
        for stage, file in enumerate(stages)
    ]
    launch(tmp_path, {"stages": [], "jobs": jobs})
    run_job(causal_settings(*options), made / "cache", tmp_path / "one", alone)
    for stage in range(4):
        found, expected = trace(tmp_path / f"two {stage}"), trace(tmp_path / "one")
        assert len(found) == len(expected) == 3
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4), stage
        measured, wanted = (
            json.loads((tmp_path / name / "evaluation.jsonl").read_text().splitlines()[-1])
            for name in (f"two {stage}", "one")
        )
        assert (measured["kl"], measured["tokens"]) == pytest.approx((wanted["kl"], wanted["tokens"]), rel=1e-4)
        ours, theirs = (load_file(tmp_path / name / "trained.safetensors") for name in (f"two {stage}", "one"))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_have_one_trace_without_zero_and_under_zero_3(
    made: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    let_fp16_run_on_a_cpu(monkeypatch)
    traces = []
    for stage in (0, 3):
        options = [f"--training.precision={precision}", f"--deepspeed={stage_file(tmp_path, stage)}"]
        wanted = causal_settings(*student_options(made, "hf"), *options, "--training.max_steps=3")
        run_job(wanted, made / "cache", tmp_path / str(stage), alone)
        traces.append(trace(tmp_path / str(stage)))
    for ours, theirs in zip(*traces, strict=True):
        assert ours["applied"]
        assert ours == pytest.approx(theirs, rel=2**-8)


@pytest.mark.parametrize("kind", ["hf", "capped"])
def test_a_run_under_zero_3_is_finished_and_exported(made: Path, alone: Processes, tmp_path: Path, kind: str) -> None:
    options = [f"--evaluation.cache={made / 'cache'}", "--training.max_steps=2", *student_options(made, kind)]
    wanted = causal_settings(*options, f"--deepspeed={stage_file(tmp_path, 3)}")
    finish(run_job(wanted, made / "cache", tmp_path / "run", alone))
    run_job(causal_settings(*options), made / "cache", tmp_path / "zero 0", alone)
    for ours, theirs in zip(trace(tmp_path / "run"), trace(tmp_path / "zero 0"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert read_summary(tmp_path / "run").trainable_parameters > 10_000
    export_student(tmp_path / "run", tmp_path / "export")
    stored = load_file(tmp_path / "run" / "trained.safetensors")
    assert all(tensor.dim() > 0 and tensor.numel() for tensor in stored.values())


def small_width(folder: Path) -> Path:
    return save_llama(folder, hidden_size=16, initializer_range=0.02)


def test_a_map_compares_states_of_two_widths(made: Path, alone: Processes, tmp_path: Path) -> None:
    """The default's Frobenius term works for a student of any width; the paper's, without a map, is refused."""
    narrow, weights_on = small_width(tmp_path / "narrow"), "--distillation.frobenius.weight_init=0.2"
    wanted = causal_settings(f"--model.hf={narrow}", weights_on, "--distillation.frobenius.weight_final=0.2")
    run_job(wanted, made / "cache", tmp_path / "run", alone)
    first, *_, last = (line["frobenius"] for line in trace(tmp_path / "run"))
    assert 0 < last < first
    assert not any("state_map" in name for name in load_file(tmp_path / "run" / "trained.safetensors"))
    raw = causal_settings(f"--model.hf={narrow}", weights_on, "--distillation.frobenius.channels=raw")
    with pytest.raises(
        UserError, match=r"channels raw: the student's hidden states have 16 channels, the teacher's 32"
    ):
        run_job(raw, made / "cache", tmp_path / "raw", alone)


def test_a_cache_in_exact_mode_is_compared_with_its_teachers_own_head(alone: Processes, tmp_path: Path) -> None:
    cache = make_transplant_cache(tmp_path, targets={"mode": "exact"})
    wanted = causal_settings(f"--model.hf={tmp_path / 'teacher'}", f"--evaluation.cache={cache}")
    outcome = run_job(wanted, cache, tmp_path / "run", alone)
    assert outcome.before is not None
    assert outcome.before.kl == pytest.approx(0, abs=1e-5)
    finish(outcome)
    loaded = load_student(tmp_path / "run", open_cache(cache), CPU)
    assert loaded.teacher_head is not None
    moved = (loaded.teacher_head.weight - loaded.model.head.weight).abs().max()
    assert float(moved) > 1e-3
    measured = read_summary(tmp_path / "run").teacher_measures
    assert measured is not None
    assert measured["cross_entropy"] == pytest.approx(outcome.before.cross_entropy, rel=1e-5)


def test_another_run_begins_with_its_parameters(made: Path, alone: Processes, tmp_path: Path) -> None:
    wanted = causal_settings(*student_options(made, "hf"), "--training.max_steps=2")
    finish(run_job(wanted, made / "cache", tmp_path / "first", alone))
    run_job(wanted, made / "cache", tmp_path / "second", alone, tmp_path / "first")
    first, second = (trace(tmp_path / name) for name in ("first", "second"))
    assert second[0]["loss"] != first[0]["loss"]
    with pytest.raises(UserError, match=r"of model.hf .*llama, and these settings say model.preset transformer; set"):
        run_job(
            causal_settings("--model.preset=transformer"), made / "cache", tmp_path / "third", alone, tmp_path / "first"
        )


def refused(made: Path, *options: str, cache: str = "cache") -> str:
    with pytest.raises(UserError) as raised:
        initial_student(causal_settings(*options), open_cache(made / cache), CPU)
    said = str(raised.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("Llama", NARROW, "250 rows, the cache's tokenizer 257 tokens: another vocabulary"),
        ("Llama", {"vocab_size": 4000}, "another vocabulary; the student and the cache's teacher must have the same"),
        ("Llama", {"max_position_embeddings": 16}, "takes 16 positions, the cache's rows have 32"),
        ("Mixtral", {"output_router_logits": True}, "set output_router_logits to false"),
        ("Bloom", {}, "sees across the documents of a row"),
        ("Mamba", {}, "sees across the documents of a row"),
    ],
)
def test_a_model_that_cannot_be_a_student_is_one_line(
    made: Path, tmp_path: Path, family: str, fields: dict[str, Any], said: str
) -> None:
    student = save_family(family, tmp_path / "student", **fields)
    assert said in refused(made, f"--model.hf={student}")


def test_another_tokenizer_is_one_line(made: Path, tmp_path: Path) -> None:
    student = save_llama(tmp_path / "student")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(student)
    assert "another tokenizer than that of" in refused(made, f"--model.hf={student}")
    assert "another tokenizer than that of" in refused(made, f"--model.hf={student}", "--model.hf_random=true")
    for file in student.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer cannot be loaded" in refused(made, f"--model.hf={student}")


def test_weights_that_are_not_there_are_one_line_and_random_ones_need_none(made: Path, tmp_path: Path) -> None:
    student = save_llama(tmp_path / "student")
    (student / "model.safetensors").unlink()
    assert "--model.hf_random true begins with random weights" in refused(made, f"--model.hf={student}")
    cache = open_cache(made / "cache")
    options = (f"--model.hf={student}", "--model.hf_random=true")
    one, again, other = (
        dict(initial_student(causal_settings(*options, f"--training.seed={seed}"), cache, CPU).named_parameters())
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["model.lm_head.weight"], other["model.lm_head.weight"])
    assert "model.hf ./nowhere: cannot be loaded" in refused(made, "--model.hf=./nowhere")


def test_a_transformer_needs_its_teachers_configuration(made: Path, tmp_path: Path) -> None:
    cache = make_transplant_cache(tmp_path, teacher={"model": str(tmp_path / "teacher"), "dtype": "float32"})
    said = refused(tmp_path, "--model.preset=transformer")
    assert "does not carry its teacher's configuration; name the teacher with --model.teacher" in said
    named = causal_settings("--model.preset=transformer", f"--model.teacher={tmp_path / 'teacher'}")
    ours = initial_student(named, open_cache(cache), CPU)
    carried = initial_student(causal_settings("--model.preset=transformer"), open_cache(made / "cache"), CPU)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), carried.parameters(), strict=True))
    other = save_llama(tmp_path / "other")
    said = refused(tmp_path, "--model.preset=transformer", f"--model.teacher={other}")
    assert "its number of layers is 2, and 3 of" in said
