"""A finished run as a folder: the trained numbers, whole or not at all, and nothing overwritten."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from delta_common.errors import UserError
from student.export.write import export_student
from student.inference.load import load_model


def test_the_export_is_the_trained_student(finished_run: Path, tmp_path: Path) -> None:
    size = export_student(finished_run, tmp_path / "out")
    assert size == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    model = load_model(tmp_path / "out", "auto")
    trained = load_file(finished_run / "trained.safetensors")
    assert dict(model.named_parameters()).keys() == {f"student.{name}" for name in trained}
    assert all(torch.equal(model.get_parameter(f"student.{name}"), tensor) for name, tensor in trained.items())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_is_refused_with_what_is_missing(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    with pytest.raises(UserError, match="has not finished, 2 of 6 steps are missing"):
        export_student(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_shape_are_refused(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    tensors = load_file(run / "trained.safetensors")
    name = min(tensors)
    save_file(tensors | {name: torch.zeros(3)}, run / "trained.safetensors")
    with pytest.raises(UserError, match=f"student.{name} is not as the run's settings say; run student-train again"):
        export_student(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_with_anything_else_is_left_alone(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has other files in it, such as notes\.txt; give another folder"):
        export_student(finished_run, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
