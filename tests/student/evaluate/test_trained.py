"""A trained student for use: a run's and an export's are the same, and fit the cache or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from delta_common.errors import UserError
from student.evaluate.trained import EXPORT_ROWS, load_student, load_writer
from student.inference.hf import DistilXLSTMForCausalLM
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache
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


def test_a_runs_student_reads_the_embedding_as_it_was_trained(
    finished_run: Path, uneven_cache: Path, tmp_path: Path
) -> None:
    for file in finished_run.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "embedding_scale": 4.0}))
    cache = open_cache(uneven_cache)
    assert load_student(tmp_path, cache, CPU).model.embedding_scale == 4.0
    assert load_student(finished_run, cache, CPU).model.embedding_scale is None


def save_export(folder: Path, cache: Cache, **provenance: Any) -> DistilXLSTMForCausalLM:
    """A model as if exported from a run on `cache`, but for what `provenance` says."""
    manifest = cache.manifest
    said = {"teacher": manifest.teacher.model_dump(mode="json"), "context": manifest.rows.context, **provenance}
    model = small_model(
        vocab_size=VOCAB, padded_vocab_size=VOCAB, tokenizer_sha256=manifest.tokenizer_sha256, provenance=said
    )
    model.save_pretrained(folder)
    return model


def test_an_exports_student_is_the_model(uneven_cache: Path, tmp_path: Path) -> None:
    cache = open_cache(uneven_cache)
    model = save_export(tmp_path, cache)
    found = load_student(tmp_path, cache, CPU)
    assert found.rows == EXPORT_ROWS
    for name, tensor in model.student.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name


def test_another_teachers_cache_is_refused(finished_run: Path, tmp_path: Path) -> None:
    sizes = {"rows": 4, "seq_len": 4, "vocab_size": VOCAB + 1, "top_k": 4, "hidden_size": WIDTH}
    other = open_cache(make_synthetic_cache(tmp_path / "other", **sizes))
    with pytest.raises(UserError, match=f"--cache {other.path}: another teacher than {finished_run} was trained with"):
        load_student(finished_run, other, CPU)


@pytest.mark.parametrize(
    ("provenance", "name"),
    [({"teacher": {"weights_sha256": "0"}}, "teacher"), ({"context": "document"}, "rows.context")],
)
def test_a_cache_of_the_same_sizes_is_not_the_same_teachers(
    provenance: dict[str, Any], name: str, uneven_cache: Path, tmp_path: Path
) -> None:
    save_export(tmp_path, open_cache(uneven_cache), **provenance)
    with pytest.raises(UserError, match=f"another {name} than {tmp_path} was trained with"):
        load_student(tmp_path, open_cache(uneven_cache), CPU)


def test_an_export_that_does_not_name_its_teacher_is_not_measured(uneven_cache: Path, tmp_path: Path) -> None:
    save_export(tmp_path, open_cache(uneven_cache), teacher=None)
    with pytest.raises(UserError, match=r"does not name its teacher's weights and rows.context; run student-export"):
        load_student(tmp_path, open_cache(uneven_cache), CPU)


def test_parameters_of_another_shape_are_refused(finished_run: Path, uneven_cache: Path, tmp_path: Path) -> None:
    for name in ("settings.json", "summary.json"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    (tmp_path / "trained.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="not the parameters of this run's student; run student-train again"):
        load_student(tmp_path, open_cache(uneven_cache), CPU)


def test_a_run_on_a_cache_without_a_tokenizer_writes_no_text(finished_run: Path) -> None:
    with pytest.raises(UserError, match="a cache without a tokenizer; its students take tokens, not text"):
        load_writer(finished_run, CPU)
