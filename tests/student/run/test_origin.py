"""Parameters to begin with: where in a run they are, whose they must be, and folders that have none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from delta_common.errors import UserError
from student.export.write import export_student
from student.model.shape import StudentSettings
from student.model.student import is_beside
from student.run.origin import Beginning, read_beginning, require_same_shapes
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache

PAPER = StudentSettings()


@pytest.fixture
def origin(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "origin")


@pytest.fixture
def cache(uneven_cache: Path) -> Cache:
    return open_cache(uneven_cache)


def assert_parameters(found: Beginning, file: Path, prefix: str = "") -> None:
    kept = {name.removeprefix(prefix): t for name, t in load_file(file).items() if name.startswith(prefix)}
    tensors = {name: tensor for name, tensor in kept.items() if not is_beside(name)}
    assert found.parameters.keys() == tensors.keys()
    assert all(torch.equal(found.parameters[name], tensors[name]) for name in tensors)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def test_a_run_gives_the_parameters_of_its_newest_checkpoint(origin: Path, cache: Cache) -> None:
    shutil.copytree(newest(origin), origin / "checkpoints" / "step_00000009")
    (origin / "checkpoints" / "step_00000009" / "state.json").unlink()
    found = read_beginning(origin, PAPER, cache)
    assert_parameters(found, origin / "checkpoints/step_00000006/states.safetensors", "parameter/")
    assert found.config is None
    (link,) = found.chain
    assert (link.kind, link.path, link.steps, link.cache_fingerprint) == ("run", str(origin), 6, cache.fingerprint)


def test_without_checkpoints_they_are_those_it_was_trained_to(origin: Path, cache: Cache) -> None:
    shutil.rmtree(origin / "checkpoints")
    found = read_beginning(origin, PAPER, cache)
    assert_parameters(found, origin / "trained.safetensors")
    assert found.chain[0].steps == 6


def test_an_export_gives_its_own(origin: Path, cache: Cache, tmp_path: Path) -> None:
    export_student(origin, tmp_path / "export")
    found = read_beginning(tmp_path / "export", PAPER, cache)
    assert_parameters(found, origin / "trained.safetensors")
    (link,) = found.chain
    assert (link.kind, link.steps, link.cache_fingerprint) == ("export", 6, cache.fingerprint)
    assert link.settings_sha256 == read_beginning(origin, PAPER, cache).chain[0].settings_sha256
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    del config["provenance"]["steps"]
    (tmp_path / "export" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: its provenance does not say what it is; run student-export"):
        read_beginning(tmp_path / "export", PAPER, cache)


def test_the_chain_goes_on(origin: Path, cache: Cache) -> None:
    before = read_beginning(origin, PAPER, cache).chain
    said = json.loads((origin / "provenance.json").read_text())
    said["begun_from"] = [link.model_dump() for link in before]
    (origin / "provenance.json").write_text(json.dumps(said))
    assert read_beginning(origin, PAPER, cache).chain == before * 2


def test_an_unfinished_run_of_before_is_known_by_its_cache(origin: Path, cache: Cache, tmp_path: Path) -> None:
    """Earlier versions wrote down at the end only what a run was trained on."""
    for name in ("provenance.json", "summary.json", "trained.safetensors"):
        (origin / name).unlink()
    assert read_beginning(origin, PAPER, cache).chain[0].cache_fingerprint == cache.fingerprint
    other = make_synthetic_cache(tmp_path / "other", rows=8, seq_len=12, vocab_size=64, top_k=8, hidden_size=32)
    with pytest.raises(UserError, match=f"--init-from {origin}: it has not finished, and an earlier version did not"):
        read_beginning(origin, PAPER, open_cache(other))


def test_a_run_of_before_says_at_its_end_whose_it_is(origin: Path, cache: Cache) -> None:
    (origin / "provenance.json").unlink()
    said = json.loads((origin / "summary.json").read_text())
    (origin / "summary.json").write_text(
        json.dumps({k: v for k, v in said.items() if k not in ("begun_from", "stages")})
    )
    assert read_beginning(origin, PAPER, cache).chain[0].steps == 6


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("teacher_weights_sha256", "another teacher than"),
        ("tokenizer_sha256", "another tokenizer than"),
        ("embedding_scale", "another scale of the embedding than"),
        ("logit_transform", "another transform of the logits than"),
    ],
)
def test_of_another_teacher_it_is_refused(origin: Path, cache: Cache, field: str, said: str) -> None:
    content = json.loads((origin / "provenance.json").read_text())
    content[field] = {"embedding_scale": 2.0, "logit_transform": {"cap": 30.0}}.get(field, "0" * 64)
    (origin / "provenance.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"--init-from {origin}: {said} {cache.path} has; give a cache of the same"):
        read_beginning(origin, PAPER, cache)


def test_of_another_preset_it_is_refused(origin: Path, cache: Cache) -> None:
    with pytest.raises(
        UserError, match=r"a student of model\.preset paper, and these settings say model\.preset hybrid; set model"
    ):
        read_beginning(origin, StudentSettings(preset="hybrid"), cache)


def test_a_folder_with_nothing_to_begin_with_is_one_line(origin: Path, cache: Cache, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=f"--init-from {folder}: no training run and no export; give the --out"):
            read_beginning(folder, PAPER, cache)
    shutil.rmtree(origin / "checkpoints")
    (origin / "trained.safetensors").write_bytes(b"1")
    with pytest.raises(UserError, match=r"trained\.safetensors: not readable \(.*\); begin from another"):
        read_beginning(origin, PAPER, cache)
    (origin / "trained.safetensors").unlink()
    with pytest.raises(UserError, match=f"--init-from {origin}: it has no checkpoint yet; let it train to its first"):
        read_beginning(origin, PAPER, cache)


def test_a_damaged_checkpoint_is_not_begun_with(origin: Path, cache: Cache) -> None:
    file = newest(origin) / "states.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{file}: not as it was written; remove {newest(origin)} to begin from"):
        read_beginning(origin, PAPER, cache)


def test_every_parameter_has_to_have_its_shape(origin: Path, cache: Cache) -> None:
    found = read_beginning(origin, PAPER, cache)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.parameters.items()}
    require_same_shapes(found, shapes)
    name = min(shapes)
    changes = {"nothing of it there, and": {"a": (2,)}, "in the student of these settings; give": {name: (7, 7)}}
    for said, change in changes.items():
        with pytest.raises(UserError, match=f"--init-from {origin}: {min(change)} is .*{said}"):
            require_same_shapes(found, shapes | change)
    del shapes[name]
    with pytest.raises(UserError, match=f"{name} is .* there, and nothing of it in the student"):
        require_same_shapes(found, shapes)
