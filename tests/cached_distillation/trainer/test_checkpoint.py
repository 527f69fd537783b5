"""The order of rows in a checkpoint."""

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from cached_distillation.dataset import CacheDataset
from cached_distillation.order import EpochSampler
from cached_distillation.trainer.checkpoint import KeepsOrder, require_order_of
from delta_common.errors import UserError


def test_it_is_kept_and_compared(dataset: CacheDataset, tmp_path: Path) -> None:
    ours, other = (EpochSampler(dataset, global_batch=4, seed=seed).state_dict() for seed in (1, 2))
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    require_order_of(checkpoint, ours)  # another trainer's checkpoint has no such file
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    KeepsOrder(lambda: ours).on_save(args, TrainerState(global_step=3), TrainerControl())
    require_order_of(checkpoint, ours)
    with pytest.raises(UserError, match="the state's seed is 1, this run's is 2"):
        require_order_of(checkpoint, other)
