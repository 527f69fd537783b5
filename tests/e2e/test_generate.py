"""student-generate as a user meets it: text in order, while it is written, and one line for what makes no sense."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from student.cli import generate as generate_cli
from tests.helpers.made_exports import change_tokenizer, run

PROMPTS = ("Once upon a time", "a", "the quick brown fox jumps over the lazy dog")


def written(capsys: pytest.CaptureFixture[str], *words: Path | str) -> str:
    capsys.readouterr()
    assert run(generate_cli, *words) == 0
    return capsys.readouterr().out


def test_student_generate_continues_prompts_in_order_as_it_does_each_alone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [made / "export", "--max-new-tokens", "12", "--temperature", "0"]
    alone = [written(capsys, *options, "--prompt", prompt) for prompt in PROMPTS]
    assert all(text.startswith(prompt) and len(text) > len(prompt) for text, prompt in zip(alone, PROMPTS, strict=True))
    given = [word for prompt in PROMPTS[:2] for word in ("--prompt", prompt)]
    (tmp_path / "prompts.txt").write_text(f"\n{PROMPTS[2]}\n\n")
    together = written(capsys, *options, *given, "--prompts", tmp_path / "prompts.txt")
    assert together == "\n".join(alone)
    many = written(capsys, *options, *(["--prompt", PROMPTS[1]] * 10))
    assert many == "\n".join([alone[1]] * 10)


def test_a_run_writes_what_its_export_writes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-new-tokens", "12", "--temperature", "0", "--prompt", PROMPTS[0], "--prompt", PROMPTS[2]]
    assert written(capsys, made / "run", *options) == written(capsys, made / "export", *options)


def _moved_cache(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"cache": str(run / "gone")}))


def _other_tokenizer(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"tokenizer_sha256": "0"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "summary.json").unlink(), "the run has not finished; run its student-train command again"),
        (lambda run: (run / "trained.safetensors").unlink(), "not the parameters of this run's student"),
        (_moved_cache, "if it has moved, write with what student-export --cache makes of the run"),
        (_other_tokenizer, "not the tokenizer that"),
    ],
)
def test_a_run_that_cannot_be_written_with_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: str
) -> None:
    made = shutil.copytree(folder / "run", tmp_path / "run")
    damage(made)
    assert run(generate_cli, made, "--prompt", "a") == 2
    refused = capsys.readouterr()
    assert words in refused.err
    assert refused.err.count("\n") == 1
    assert refused.out == ""


def test_drawn_text_depends_on_the_seed_and_the_prompts_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [folder / "export", "--max-new-tokens", "16"]
    first, again, other = (written(capsys, *options, "--prompt", "a", "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert written(capsys, *options, "--prompt", "a", "--prompt", "a", "--seed", "1") == f"{first}\n{other}"
    narrow = written(capsys, *options, "--prompt", "a", "--top-p", "1e-6")
    assert narrow == written(capsys, *options, "--prompt", "a", "--temperature", "0")


def test_text_is_printed_while_it_is_written(folder: Path) -> None:
    """The first token is there before the last: a reader that leaves early does not wait for 100,000 tokens."""
    command = [sys.executable, "-c", "from student.cli.generate import main; main()", str(folder / "export")]
    options = ["--prompt", "Once", "--max-new-tokens", "100000", "--temperature", "0"]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.read(10).startswith(b"Once")
        assert process.poll() is None
        process.kill()


def _without(name: str) -> Callable[[Path], None]:
    return lambda export: (export / name).unlink()


def _cut_weights(export: Path) -> None:
    (export / "model.safetensors").write_bytes((export / "model.safetensors").read_bytes()[:500])


def _tensor_less(export: Path) -> None:
    tensors = load_file(export / "model.safetensors")
    del tensors["student.embedding"]
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})


def _other_type(export: Path) -> None:
    said = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(said | {"model_type": "llama"}))


def _no_json(export: Path) -> None:
    (export / "config.json").write_text("{")


BAD_EXPORTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (_without("config.json"), "no export; give the folder that student-export"),
    "no weights": (_without("model.safetensors"), "model.safetensors: missing; run student-export again"),
    "no tokenizer": (_without("tokenizer_config.json"), "tokenizer_config.json: missing; run student-export again"),
    "no token map": (_without("tokenizer.json"), "its tokenizer is not"),
    "cut weights": (_cut_weights, "its weights or configuration are damaged"),
    "a tensor less": (_tensor_less, "student.embedding is missing or not the student's; run student-export again"),
    "another type": (_other_type, "is missing or not the model's; give a folder with all of its weights"),
    "no JSON": (_no_json, "config.json: not a model's configuration"),
    "another tokenizer": (change_tokenizer, "its tokenizer is not the one the student was trained with"),
}


@pytest.mark.parametrize("kind", BAD_EXPORTS)
def test_what_is_no_export_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    damage, words = BAD_EXPORTS[kind]
    export = shutil.copytree(folder / "export", tmp_path / "export")
    damage(export)
    assert run(generate_cli, export, "--prompt", "a") == 2
    refused = capfd.readouterr()
    assert words in refused.err
    assert refused.err.count("\n") == 1
    assert refused.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to continue; give --prompt TEXT, --prompts FILE"),
        (("--prompt", ""), "the prompt is empty; give at least one token"),
        (("--prompts", "no-such-file"), "--prompts no-such-file: not readable as text"),
        (("--prompt", "a", "--temperature", "-1"), "temperature -1 is negative"),
        (("--prompt", "a", "--temperature", "nan"), "temperature nan is negative or no number"),
        (("--prompt", "a", "--top-p", "0"), "top-p 0 is no share"),
        (("--prompt", "a", "--top-p", "1.5"), "top-p 1.5 is no share"),
        (("--prompt", "a", "--max-new-tokens", "0"), "--max-new-tokens 0: give 1 or more"),
        (("--prompt", "a", "--beams", "3"), "(see student-generate --help)"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(generate_cli, folder / "export", *words) == 2
    refused = capsys.readouterr().err
    assert message in refused
    assert refused.count("\n") == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(generate_cli, tmp_path / "none", "--prompt", "a") == 2
    assert "no such folder; give the --out folder of student-export" in capsys.readouterr().err
