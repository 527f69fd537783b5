"""student-export as a user meets it: the model of training, whole, in a process of its own, and nothing overwritten."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import student.transformers  # noqa: F401
from delta_common.tokenizer import tokenizer_digest
from student.cli import evaluate as eval_cli
from student.cli import export as export_cli
from student.evaluate.trained import load_student
from student.inference.generate import generate_tokens
from student.inference.load import load_export
from student.inference.tokenizer import encode_prompt
from teacher_cache.read.cache import open_cache
from tests.helpers.made_exports import change_tokenizer, run, train
from tests.helpers.small_training import make_uneven_cache

CPU = torch.device("cpu")
PROMPTS = ("Once upon a time", "a", "the quick brown fox jumps over the lazy dog")
KEPT_OUT = (
    "deepspeed",
    "zarr",
    "student.train.loop",
    "student.train.engine",
    "student.train.assemble",
    "teacher_cache",
)


def fresh(code: str, *arguments: Path | str, **environment: str) -> Any:
    """What a new process prints last, as JSON; warnings are errors, and what an export does without is not there."""
    out = "\n".join(["import sys", *(f"sys.modules[{name!r}] = None" for name in KEPT_OUT), "import json", code])
    done = subprocess.run(
        [sys.executable, "-c", out, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOGITS = """
import torch
import student.transformers
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = torch.arange(60).view(2, 30)
if len(sys.argv) > 2:
    model.save_pretrained(sys.argv[2])
print(json.dumps(model(tokens).logits.double().tolist()))
"""


def test_a_fresh_process_without_trainer_and_cache_has_the_trained_student(made: Path, tmp_path: Path) -> None:
    trained = load_student(made / "run", open_cache(made / "cache"), CPU).model
    with torch.no_grad():
        expected = trained.logits(trained(torch.arange(60).view(2, 30))).double()
    found = torch.tensor(fresh(LOGITS, made / "export", tmp_path / "again"), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert fresh(LOGITS, tmp_path / "again") == found.tolist()


REGISTERED = """
{imports}
found = AutoConfig.from_pretrained(sys.argv[1])
print(json.dumps([type(found).__name__, AutoModelForCausalLM._model_mapping[type(found)].__name__]))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import student.transformers\nfrom transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM\nimport student.transformers",
        "from transformers import AutoConfig\nimport student.transformers\n"
        "from transformers import AutoModelForCausalLM",
    ],
)
def test_importing_student_transformers_registers_it_in_any_order(folder: Path, imports: str) -> None:
    found = fresh(REGISTERED.format(imports=imports), folder / "export")
    assert found == ["DistilXLSTMConfig", "DistilXLSTMForCausalLM"]


def test_importing_student_imports_little() -> None:
    code = "import student, student.cli.train, student.cli.export, student.cli.generate\n"
    code += "print(json.dumps([name for name in ('torch', 'transformers', 'xlstm') if name in sys.modules]))"
    assert fresh(code) == []


def test_it_is_measured_as_its_run_is(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name in ("run", "export"):
        capsys.readouterr()
        assert run(eval_cli, made / name, "--cache", made / "cache", "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    ours, theirs = (one["student"] for one in found)
    for name in ("cross_entropy", "kl", "calibration_error"):
        assert ours[name]["value"] == pytest.approx(theirs[name]["value"], rel=1e-4), name
    assert found[0]["teacher"] == found[1]["teacher"]
    assert found[0]["rows"] == found[1]["rows"] == 32


PIPELINE = """
import student.transformers
from transformers import pipeline
write = pipeline("text-generation", model=sys.argv[1])
options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
alone = [write(prompt, **options)[0]["generated_text"] for prompt in sys.argv[2:]]
together = [found[0]["generated_text"] for found in write(sys.argv[2:], batch_size=3, **options)]
print(json.dumps([alone, together]))
"""


def test_pipelines_write_what_the_student_writes(made: Path) -> None:
    alone, together = fresh(PIPELINE, made / "export", *PROMPTS)
    found = load_export(made / "export", CPU)
    expected = [
        found.tokenizer.decode(
            generate_tokens(
                found.student, encode_prompt(found.tokenizer, text), max_new_tokens=12, stop_token=found.stop_token
            )
        )
        for text in PROMPTS
    ]
    assert alone == together == expected


def test_generate_follows_beams_and_samples_as_transformers_does_without_a_state(made: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made / "export").double()
    tokens = torch.arange(40, 50)[None]
    for options in ({"num_beams": 3}, {"do_sample": True, "top_p": 0.9}, {}):
        written = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            chosen = {"max_new_tokens": 10, "do_sample": False, **options}
            written.append(model.generate(tokens, use_cache=use_cache, **chosen))
        assert torch.equal(*written)


def test_tensors_are_those_of_the_cache_and_of_the_run(made: Path) -> None:
    stored = load_file(made / "export" / "model.safetensors")
    assert torch.equal(
        stored.pop("student.embedding"), load_file(made / "cache/teacher/frozen.safetensors")["embedding.weight"]
    )
    trained = load_file(made / "run" / "trained.safetensors")
    assert stored.keys() == {f"student.{name}" for name in trained}
    assert all(torch.equal(stored[f"student.{name}"], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_keep_values_and_types(tmp_path: Path, precision: str, dtype: str) -> None:
    """Of a synthetic cache, which has no tokenizer, as if its teacher had an LM head of its own, with a bias."""
    make_uneven_cache(tmp_path / "cache")
    assert train(tmp_path, "run", f"--training.precision={precision}") == 0
    frozen_file = open_cache(tmp_path / "cache").frozen_weights
    frozen = {name: t.to(getattr(torch, dtype)) for name, t in load_file(frozen_file).items()}
    frozen["lm_head.weight"] = frozen["embedding.weight"].flip(0).contiguous()
    frozen["lm_head.bias"] = frozen["embedding.weight"][:, 0].contiguous()
    with pytest.MonkeyPatch.context() as patch:
        save_file(frozen, tmp_path / "frozen.safetensors")
        patch.setattr("teacher_cache.read.cache.Cache.frozen_weights", tmp_path / "frozen.safetensors")
        assert run(export_cli, tmp_path / "run", "--out", tmp_path / "export") == 0
    stored = load_file(tmp_path / "export" / "model.safetensors")
    assert torch.equal(stored.pop("student.embedding"), frozen["embedding.weight"])
    assert torch.equal(stored.pop("student.lm_head"), frozen["lm_head.weight"])
    assert torch.equal(stored.pop("student.lm_head_bias"), frozen["lm_head.bias"])
    trained = load_file(tmp_path / "run" / "trained.safetensors")
    assert stored.keys() == {f"student.{name}" for name in trained}
    assert all(torch.equal(stored[f"student.{name}"], tensor) for name, tensor in trained.items())
    assert {t.dtype for t in trained.values()} == {torch.float32 if precision == "fp32" else torch.bfloat16}
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.student.head.weight, frozen["lm_head.weight"][: model.config.vocab_size].float())
    assert all(torch.equal(t, trained[name.removeprefix("student.")].float()) for name, t in model.named_parameters())
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"as the cache has them ({dtype})" in card
    assert "it takes tokens, not text" in card


def test_the_card_and_the_configuration_say_where_it_comes_from(made: Path) -> None:
    card = (made / "export" / "README.md").read_text()
    config = json.loads((made / "export" / "config.json").read_text())
    manifest = open_cache(made / "cache").manifest
    evaluations = [json.loads(line) for line in (made / "run" / "evaluation.jsonl").read_text().splitlines()]
    last = json.loads((made / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for said in (
        manifest.teacher.name,
        manifest.teacher.weights_sha256,
        manifest.tokenizer_sha256,
        manifest.fingerprint,
        f"{evaluations[-1]['cross_entropy']:.4f}",
        f"{evaluations[-1]['kl']:.4f}",
        f"{last['loss']:.4f}",
        '"learning_rate": 0.01',
    ):
        assert said in card
    provenance = config["provenance"]
    assert provenance["cache_fingerprint"] == manifest.fingerprint
    assert provenance["teacher"]["weights_sha256"] == manifest.teacher.weights_sha256
    assert provenance["steps"] == 6
    assert config["tokenizer_sha256"] == manifest.tokenizer_sha256


def test_an_export_is_replaced_whole_and_nothing_else_ever_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(export_cli, folder / "run", "--out", out) == 0
    (out / "README.md").write_text("edited")
    assert run(export_cli, folder / "run", "--out", out) == 0
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in (folder / "export").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _foreign(folder: Path, tmp_path: Path, kind: str) -> Path:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    elif kind == "run":
        shutil.copytree(folder / "run", out)
    else:
        shutil.copytree(folder / "export", out)
        (out / "notes.txt").write_text("mine")
    return out


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("file", "is not a folder; give another folder"),
        ("link", "is not a folder"),
        ("run", "has other files in it, such as checkpoints; give another folder"),
        ("export with notes", "has files that are not of an export, such as notes.txt"),
    ],
)
def test_a_foreign_folder_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    out = _foreign(folder, tmp_path, kind)
    before = sorted((str(path), path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*"))
    assert run(export_cli, folder / "run", "--out", out) == 2
    refused = capsys.readouterr().err
    assert f"--out {out}: {words}" in refused
    assert refused.count("\n") == 1
    assert sorted((str(path), path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*")) == before


def _copy(folder: Path, tmp_path: Path, name: str) -> Path:
    return shutil.copytree(folder / name, tmp_path / name)


def _without_result(folder: Path, tmp_path: Path) -> Path:
    made = _copy(folder, tmp_path, "run")
    (made / "trained.safetensors").unlink()
    return made


def _cut_result(folder: Path, tmp_path: Path) -> Path:
    made = _copy(folder, tmp_path, "run")
    (made / "trained.safetensors").write_bytes((made / "trained.safetensors").read_bytes()[:1000])
    return made


def _one_parameter_less(folder: Path, tmp_path: Path) -> Path:
    made = _copy(folder, tmp_path, "run")
    tensors = load_file(made / "trained.safetensors")
    tensors.pop(max(tensors))
    save_file(tensors, made / "trained.safetensors")
    return made


def _moved_cache(folder: Path, tmp_path: Path) -> Path:
    made = _copy(folder, tmp_path, "run")
    summary = json.loads((made / "summary.json").read_text())
    (made / "summary.json").write_text(json.dumps(summary | {"cache": str(tmp_path / "gone")}))
    return made


BAD_RUNS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "unfinished": (lambda f, t: f / "unfinished", "has not finished, 2 of 6 steps are missing; run its student-train"),
    "no run": (lambda f, t: t, "no training run here; give the --out folder of student-train"),
    "no such folder": (lambda f, t: t / "none", "no training run here"),
    "an export": (lambda f, t: f / "export", "no training run here"),
    "no result": (_without_result, "the run has not written its result after 6 steps; run its student-train"),
    "cut result": (_cut_result, "trained.safetensors: not readable"),
    "one parameter less": (_one_parameter_less, "is not as the run's settings say; run student-train again"),
    "moved cache": (_moved_cache, "if it has moved, give --cache"),
}


@pytest.mark.parametrize("kind", BAD_RUNS)
def test_what_is_no_finished_run_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make, words = BAD_RUNS[kind]
    made = make(folder, tmp_path)
    assert run(export_cli, made, "--out", tmp_path / "out") == 2
    refused = capsys.readouterr().err
    assert words in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".staging*"))


def test_a_moved_cache_is_found_by_its_option_and_another_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _moved_cache(folder, tmp_path)
    other = make_uneven_cache(tmp_path / "other")
    assert run(export_cli, made, "--out", tmp_path / "out", "--cache", other) == 2
    assert f"{other}: not the cache that {made} was trained on" in capsys.readouterr().err
    assert run(export_cli, made, "--out", tmp_path / "out", "--cache", folder / "cache") == 0


def test_a_cache_with_another_tokenizer_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(folder / "cache" / "teacher" / "tokenizer", tmp_path / "tokenizer")
    change_tokenizer(other)
    monkeypatch.setattr("teacher_cache.read.cache.Cache.tokenizer_folder", other)
    assert run(export_cli, folder / "run", "--out", tmp_path / "out") == 2
    assert f"{other}: another tokenizer (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_digest_of_a_tokenizer_is_the_caches(folder: Path) -> None:
    tokenizer = load_export(folder / "export", CPU).tokenizer
    assert tokenizer_digest(tokenizer) == open_cache(folder / "cache").manifest.tokenizer_sha256


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_leaves_what_was_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    out = shutil.copytree(folder / "export", tmp_path / "out")
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("student.export.write.save_file", full)
    assert run(export_cli, folder / "run", "--out", out) == 2
    assert f"--out {out}: cannot be written" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_made_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(export_cli, folder / "run", "--out", tmp_path / "file" / "out") == 2
    assert "out: cannot be made (File exists); give another folder" in capsys.readouterr().err
