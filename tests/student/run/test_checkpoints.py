"""Checkpoints in a folder: the newest whole one, and how far it says training is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.data.order import ShuffleSizes
from student.run.checkpoints import Progress, TrainingState, find_checkpoint
from tests.helpers.made_checkpoints import write


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


@given(stages=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_stage_counts_its_own_updates(stages: list[list[bool]]) -> None:
    progress = Progress()
    for number, stage in enumerate(stages):
        progress = progress.in_next_stage() if number else progress
        assert (progress.updates, progress.epoch_updates) == (0, 0)
        for applied in stage:
            progress = progress.after_step(applied=applied, ends_epoch=False)
    assert progress.updates == sum(stages[-1])
    assert progress.earlier_updates == sum(sum(stage) for stage in stages[:-1])
    assert progress.skipped == sum(not applied for stage in stages for applied in stage)


def test_a_state_without_stages_is_that_of_one() -> None:
    """As versions before stages wrote it."""
    written = {"step": 4, "updates": 3, "epoch_updates": 3, "epoch": 0, "position": 4}
    state = TrainingState.model_validate(written | {"cache_fingerprint": "", "settings": {}})
    assert (state.stage, state.progress) == (1, Progress(4, 3, 3, 0))
    assert state.sizes == (ShuffleSizes(4, 4),), "as many as every window had, and no pools"
