"""An export loaded: the same student, and in one line what is missing or damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from delta_common.errors import UserError
from delta_common.tokenizer import tokenizer_digest
from student.inference.load import is_export, load_export, load_model, read_config
from tests.helpers.causal_students import save_llama
from tests.helpers.small_students import ROUNDING, small_model, tokens_of
from tests.helpers.tokenizers_for_tests import EOS, byte_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "export"
    tokenizer = byte_tokenizer()
    model = small_model(
        vocab_size=EOS + 1, padded_vocab_size=288, eos_token_id=EOS, tokenizer_sha256=tokenizer_digest(tokenizer)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "export")


@pytest.mark.parametrize("kind", ROUNDING)
def test_it_is_the_student_that_was_saved(export: Path, kind: str) -> None:
    sizes = {"vocab_size": EOS + 1, "padded_vocab_size": 288}
    digest = tokenizer_digest(byte_tokenizer())
    small_model(kind, **sizes, eos_token_id=EOS, tokenizer_sha256=digest).save_pretrained(export)
    wanted = small_model(kind, **sizes).student
    found = load_export(export, CPU)
    tokens = tokens_of(2, 9)
    with torch.no_grad():
        assert torch.equal(found.student.logits(found.student(tokens)), wanted.logits(wanted(tokens)))
    assert found.stop_token == EOS
    assert found.tokenizer.decode([72, 73]) == byte_tokenizer().decode([72, 73])
    assert not found.student.training


def test_a_model_needs_no_tokenizer_and_comes_in_the_type_asked_for(export: Path) -> None:
    (export / "tokenizer_config.json").unlink()
    assert load_model(export, torch.bfloat16).dtype == torch.bfloat16
    assert load_model(export, "auto").dtype == torch.float32
    with pytest.raises(UserError, match=r"tokenizer_config\.json: missing; run student-export again, of a run whose"):
        load_export(export, CPU)


def test_a_missing_tensor_is_named(export: Path) -> None:
    tensors = load_file(export / "model.safetensors")
    del tensors["student.lm_head"]
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"student\.lm_head is missing or not the student's; run student-export again"):
        load_model(export, torch.float32)


def test_other_folders_are_told_apart(export: Path, tmp_path: Path) -> None:
    assert is_export(export)
    assert not is_export(tmp_path)
    with pytest.raises(UserError, match="no export; give the folder"):
        read_config(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="a training run; give the folder"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_config(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a model's configuration"),
        ("[]", "not a model's configuration"),
        ("[" * 100_000, "not a model's configuration"),
        ('{"num_hidden_layers": ' + "9" * 4_000 + "}", "not a model's configuration"),
        (json.dumps({"model_type": "llama"}), "a model of type 'llama'; give a folder of student-export"),
    ],
)
def test_a_configuration_of_something_else_is_refused(export: Path, content: str, words: str) -> None:
    (export / "config.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_config(export)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("teacher_config", "model_type", "gpt_neox", "config.json: teacher_config: this version builds no layers of"),
        ("teacher_config", "num_hidden_layers", 2, r"student.layers.2.*is missing or not the student's"),
        (
            "teacher_config",
            "hidden_size",
            "x",
            "its weights or configuration are damaged .*expected int.*; run student-ex",
        ),
        ("teacher_config", "hidden_act", "x", "its weights or configuration are damaged .*; run student-export again"),
        ("teacher_config", "intermediate_size", 40, "its weights or configuration are damaged .*; run student-export"),
        ("mixer", "gate", 1, "config.json: mixer: gate is not known to this version; use the version of delta-cache"),
        ("mixer", "convolution", 4, "its weights or configuration are damaged .*; run student-export again"),
    ],
)
def test_files_of_a_student_that_began_as_its_teacher_that_do_not_fit_are_one_line(
    tmp_path: Path, section: str, name: str, value: object, words: str
) -> None:
    small_model("transplant").save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said[section][name] = value
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=words) as refused:
        load_model(tmp_path, torch.float32)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"tokenizer_sha256": "1"}', "its tokenizer is not the one the student was trained with; run student-export"),
        ("{", r"provenance\.json: not what student-export writes there"),
        ('{"cache": "c"}', r"provenance\.json: not what student-export writes there"),
    ],
)
def test_an_exported_model_of_transformers_has_the_tokenizer_of_training(
    tmp_path: Path, content: str, words: str
) -> None:
    folder = save_llama(tmp_path / "llama")
    assert load_export(folder, torch.device("cpu")).stop_token == EOS
    (folder / "provenance.json").write_text(json.dumps({"tokenizer_sha256": tokenizer_digest(byte_tokenizer())}))
    assert load_export(folder, torch.device("cpu")).stop_token == EOS
    (folder / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=words):
        load_export(folder, torch.device("cpu"))
