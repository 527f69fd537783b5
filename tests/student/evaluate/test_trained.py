"""A trained student for use: a run's and an export's are the same, and fit the cache or are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from delta_common.errors import UserError
from student.evaluate.trained import EXPORT_ROWS, load_student
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache
from tests.helpers.small_students import small_model
from tests.helpers.small_training import VOCAB, WIDTH

CPU = torch.device("cpu")


def test_a_runs_student_has_its_trained_parameters(finished_run: Path, uneven_cache: Path) -> None:
    found = load_student(finished_run, open_cache(uneven_cache), CPU)
    stored = load_file(finished_run / "trained.safetensors")
    assert stored.keys() == found.model.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.model.state_dict().items())
    assert found.rows == 2
    assert not any(parameter.requires_grad for parameter in found.model.parameters())


def test_an_exports_student_is_the_model(uneven_cache: Path, tmp_path: Path) -> None:
    cache = open_cache(uneven_cache)
    model = small_model(vocab_size=VOCAB, padded_vocab_size=VOCAB, tokenizer_sha256=cache.manifest.tokenizer_sha256)
    model.save_pretrained(tmp_path)
    found = load_student(tmp_path, cache, CPU)
    assert found.rows == EXPORT_ROWS
    for name, tensor in model.student.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name


def test_another_teachers_cache_is_refused(finished_run: Path, uneven_cache: Path, tmp_path: Path) -> None:
    sizes = {"rows": 4, "seq_len": 4, "vocab_size": VOCAB + 1, "top_k": 4, "hidden_size": WIDTH}
    other = open_cache(make_synthetic_cache(tmp_path / "other", **sizes))
    with pytest.raises(UserError, match=f"--cache {other.path}: another teacher than {finished_run} was trained with"):
        load_student(finished_run, other, CPU)
    export = tmp_path / "export"
    sha256 = open_cache(uneven_cache).manifest.tokenizer_sha256
    small_model(vocab_size=VOCAB, padded_vocab_size=VOCAB, tokenizer_sha256=sha256).save_pretrained(export)
    with pytest.raises(UserError, match=f"another (tokenizer|teacher) than {export} was trained with"):
        load_student(export, other, CPU)


def test_parameters_of_another_shape_are_refused(finished_run: Path, uneven_cache: Path, tmp_path: Path) -> None:
    for name in ("settings.json", "summary.json"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    (tmp_path / "trained.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="not the parameters of this run's student; run student-train again"):
        load_student(tmp_path, open_cache(uneven_cache), CPU)
