"""Checkpoint files: nothing in them is run, and they are whole or refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.train.checkpoint import (
    CHECKPOINTS_KEPT,
    Progress,
    TrainingState,
    _drop_old,
    find_checkpoint,
    load_checkpoint,
)


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


def write(out: Path, step: int, *, finished: bool = True) -> Path:
    folder = out / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "states.safetensors").write_bytes(b"1234")
    state = TrainingState(
        step=step,
        updates=step,
        epoch_updates=step,
        epoch=0,
        batch=step,
        cache_fingerprint="",
        settings={},
        tensors_bytes=4,
        tensors_xxh3_128="0" * 32,
    )
    if finished:
        (folder / "state.json").write_text(state.model_dump_json())
    return folder


def test_the_newest_finished_checkpoint_counts(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    write(tmp_path, 9)
    newest = write(tmp_path, 100)
    write(tmp_path, 101, finished=False)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert (found[0], found[1].step) == (newest, 100)
    (newest / "states.safetensors").write_bytes(b"123")
    with pytest.raises(UserError, match=f"not 4 bytes long, as it was written; remove {newest}"):
        find_checkpoint(tmp_path)
    (newest / "state.json").write_text("{}")
    with pytest.raises(UserError, match=f"not the state of a checkpoint; remove {newest}"):
        find_checkpoint(tmp_path)


@given(applied=st.lists(st.booleans(), max_size=30), epoch=st.integers(1, 7))
def test_updates_are_the_steps_that_were_applied(applied: list[bool], epoch: int) -> None:
    progress = Progress()
    for step, was_applied in enumerate(applied, start=1):
        progress = progress.after_step(applied=was_applied, ends_epoch=step % epoch == 0)
    in_this_epoch = applied[len(applied) - len(applied) % epoch :]
    assert progress == Progress(len(applied), sum(applied), sum(in_this_epoch))


def test_old_and_unfinished_checkpoints_are_dropped(tmp_path: Path) -> None:
    for step in range(4):
        write(tmp_path, step)
    write(tmp_path, 2000, finished=False)
    _drop_old(tmp_path / "checkpoints")
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000002", "step_00000003"]
    assert len(left) == CHECKPOINTS_KEPT
