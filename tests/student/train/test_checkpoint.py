"""Checkpoint files: nothing in them is run, and they are whole or refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from delta_common.errors import UserError
from student.run.checkpoints import TrainingState
from student.train.checkpoint import CHECKPOINTS_KEPT, _drop_old, load_checkpoint
from tests.helpers.made_checkpoints import write


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    created = tmp_path / "created"
    folder = write(tmp_path, 1)
    (folder / "states.safetensors").write_bytes(pickle.dumps(Evil(created)))
    state = TrainingState.model_validate_json((folder / "state.json").read_bytes())
    with pytest.raises(UserError, match=f"not as it was written; remove {folder}"):
        load_checkpoint(None, folder, state)
    assert not created.exists()


def test_old_and_unfinished_checkpoints_are_dropped(tmp_path: Path) -> None:
    for step in range(4):
        write(tmp_path, step)
    write(tmp_path, 2000, finished=False)
    _drop_old(tmp_path / "checkpoints")
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000002", "step_00000003"]
    assert len(left) == CHECKPOINTS_KEPT
