"""Checkpoint files: read without running them, whole or refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_common.errors import UserError
from student.checkpoint import CHECKPOINTS_KEPT, TrainingState, WeightsOnlyCheckpointEngine, _drop_old, find_checkpoint
from student.records import Records


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path, zipped: bool) -> None:
    file, created = tmp_path / "step_00000001" / "states.pt", tmp_path / "created"
    file.parent.mkdir()
    torch.save({"optimizer": Evil(created)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"not readable as a checkpoint .* remove {file.parent}"):
        WeightsOnlyCheckpointEngine().load(str(file), map_location="cpu")
    assert not created.exists()
    file.write_bytes(pickle.dumps(Evil(created)))
    with pytest.raises(UserError, match="not readable as a checkpoint"):
        WeightsOnlyCheckpointEngine().load(str(file), map_location="cpu")
    assert not created.exists()


def test_a_checkpoint_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    engine = WeightsOnlyCheckpointEngine()
    engine.zipfile_serialization = True
    with pytest.raises(UserError, match=r"cannot be written .* earlier checkpoints are kept"):
        engine.save({"a": torch.zeros(1)}, str(tmp_path / "missing" / "states.pt"))


def write(out: Path, step: int, *, finished: bool = True) -> Path:
    folder = out / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "states.pt").write_bytes(b"1234")
    state = TrainingState(
        step=step,
        epoch=0,
        position=step,
        cache_fingerprint="",
        world_size=1,
        zero_stage=0,
        settings={},
        files={"states.pt": 4},
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
    (newest / "states.pt").write_bytes(b"123")
    with pytest.raises(UserError, match=f"not 4 bytes long, as it was written; remove {newest}"):
        find_checkpoint(tmp_path)
    (newest / "state.json").write_text("{}")
    with pytest.raises(UserError, match=f"not the state of a checkpoint; remove {newest}"):
        find_checkpoint(tmp_path)


def test_old_and_unfinished_checkpoints_are_dropped(tmp_path: Path) -> None:
    for step in range(4):
        write(tmp_path, step)
    write(tmp_path, 2000, finished=False)
    _drop_old(tmp_path / "checkpoints")
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000002", "step_00000003"]
    assert len(left) == CHECKPOINTS_KEPT


def test_records_keep_floats_and_forget_what_a_resumed_run_takes_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl")
    assert records.read() == []
    written = [{"step": step, "loss": 1 / (step + 3)} for step in range(5)]
    for record in written:
        records.append(record)
    with records.path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert records.read() == written
    records.drop_after(2)
    assert records.read() == written[:3]
