"""Distillation from a cache for transformers' `Trainer` and what derives from it, such as TRL's `SFTTrainer`.

class DistillationTrainer(CachedDistillation, Trainer): ...
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import get_last_checkpoint

from cached_distillation.batch import CachedBatch, CachedRow, collate
from cached_distillation.causal_lm import causal_lm_loss
from cached_distillation.dataset import CacheDataset
from cached_distillation.order import EpochSampler
from cached_distillation.step import step_counts
from cached_distillation.trainer.checkpoint import KeepsOrder, require_order_of
from cached_distillation.trainer.evaluate import row_sums
from cached_distillation.trainer.progress import LossLog
from cached_distillation.trainer.schedule import Schedule
from delta_common.errors import UserError
from student.data.batch import GlobalCounts
from student.loss.schedule import Coefficients
from student.loss.settings import DistillationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
    from transformers.trainer_utils import EvalLoopOutput, TrainOutput
else:
    Trainer = object


class Inputs(TypedDict):
    """What a step is given."""

    input_ids: Tensor
    """The batch's, by which the Trainer counts."""
    batch: CachedBatch


class CachedDistillation(Trainer):
    """Put before a Trainer class: it trains on a `CacheDataset` by distillation, and measures on another.

    Rows come in `student-train`'s order; a step's loss is divided by what counts in it over all processes and
    micro-batches. Beside the loss `cross_entropy`, `kl`, `alpha` and `temperature` are logged, and `frobenius` and
    `beta` where that term is on; measured are `eval_loss`, the cross-entropy, and `eval_kl`, both per token at T = 1.

    Args:
        model: as for the Trainer.
        args: as for the Trainer; `remove_unused_columns` is set to False.
        train_dataset: what to train on.
        eval_dataset: what to measure on, or several by name.
        distillation: schedules of α, T and β, or their values if they stay; by default the paper's without the
            Frobenius term, which needs a student of the teacher's width.
        processing_class: the student's tokenizer, which must be the cache's.
        others: as for the Trainer.

    Raises `UserError` for a cache of another tokenizer or vocabulary, and for temperatures outside its range.

    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | str,
        args: "TrainingArguments",
        *,
        train_dataset: CacheDataset,
        eval_dataset: CacheDataset | dict[str, CacheDataset] | None = None,
        distillation: DistillationSettings | Coefficients | None = None,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        **others: object,
    ) -> None:
        self._schedule = Schedule.of(distillation, train_dataset)
        self._losses = LossLog()
        self._counts = GlobalCounts(1, 1)
        if processing_class is not None:
            train_dataset.require_tokenizer(processing_class)
        args.remove_unused_columns = False
        super().__init__(
            model,
            args,
            data_collator=_collate,
            train_dataset=_accepted_by(args, train_dataset),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **others,
        )
        self.train_dataset = train_dataset
        self._teacher_head = train_dataset.teacher_head()
        _require_data_parallel(self)
        self.add_callback(KeepsOrder(lambda: self._get_train_sampler().state_dict()))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *given: object, **others: object
    ) -> "TrainOutput":
        """As the Trainer's; raises `UserError` for a checkpoint of another cache, seed or global batch."""
        from_last = resume_from_checkpoint is True
        checkpoint = get_last_checkpoint(self.args.output_dir) if from_last else resume_from_checkpoint
        if isinstance(checkpoint, str):
            require_order_of(Path(checkpoint), self._get_train_sampler().state_dict())
        return super().train(resume_from_checkpoint, *given, **others)

    def _get_train_sampler(self, train_dataset: object = None) -> EpochSampler:  # noqa: ARG002
        """The order over all processes; the Trainer gives each its batches."""
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return _InEpochOf(self, rows, seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Inputs], num_batches: int, device: torch.device
    ) -> tuple[list[Inputs], float]:
        """The micro-batches of a step, and how many positions count in them over all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            self._counts = step_counts([inputs["batch"] for inputs in samples], device)
        return samples, self._counts.tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: float | None = None,  # noqa: ARG002
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's part of the step's loss, times the number of processes, whose gradients are averaged."""
        batch, coefficients = inputs["batch"], self._schedule.at(self.state.global_step)
        loss = causal_lm_loss(
            model,
            batch,
            **vars(coefficients),
            counts=self._counts,
            teacher_head=self._teacher_head,
            frobenius=self._schedule.frobenius,
        )
        self._losses.add(loss.sums, batch, coefficients)
        total = loss.total * self.accelerator.num_processes
        return (total, {}) if return_outputs else total

    def log(self, logs: dict[str, float], *given: float | None, **others: float | None) -> None:
        """Log what the loss was made of since the last time, beside the loss."""
        if "loss" in logs:
            logs.update(self._losses.means(lambda sums: self.accelerator.reduce(sums, reduction="sum")))
        super().log(logs, *given, **others)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, None]:
        """A batch's mean cross-entropy, and the sums of each of its rows in place of logits."""
        batch = self._prepare_inputs(inputs)["batch"]
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = row_sums(model, batch, self._teacher_head)
        return sums[:, 0].sum() / sums[:, 2].sum().clamp(min=1), sums, None

    def evaluation_loop(
        self,
        dataloader: "DataLoader[CachedRow]",
        description: str,
        prediction_loss_only: bool | None = None,  # noqa: ARG002
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> "EvalLoopOutput":
        """As the Trainer's, with means over tokens."""
        found = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        cross_entropy, kl, tokens = found.predictions.sum(0).tolist()
        found.metrics[f"{metric_key_prefix}_loss"] = cross_entropy / max(tokens, 1)
        found.metrics[f"{metric_key_prefix}_kl"] = kl / max(tokens, 1)
        return found


class _InEpochOf(EpochSampler):
    """The order in the epoch that a Trainer is in: it tells the sampler so for some kinds of DataLoader only."""

    def __init__(self, trainer: CachedDistillation, rows: int, seed: int) -> None:
        super().__init__(trainer.train_dataset, global_batch=rows, seed=seed, rank=0, world_size=1)
        self._trainer = trainer
        trainer._schedule.steps_per_epoch = self.steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        self.set_epoch(self._trainer.state.global_step // self.steps_per_epoch)
        return super().__iter__()


def _collate(rows: Sequence[CachedRow]) -> Inputs:
    if not isinstance(rows[0], CachedRow):
        raise UserError(f"rows of a {type(rows[0]).__name__}: give a CacheDataset to train on and to measure on")
    batch = collate(rows)
    return {"input_ids": batch.input_ids, "batch": batch}


def _accepted_by(args: "TrainingArguments", dataset: CacheDataset) -> object:
    """The data set, or for TRL a stand-in of its first row: it takes none but those of the library datasets."""
    if not hasattr(args, "dataset_kwargs"):
        return dataset
    from datasets import Dataset

    args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
    row = dataset[0]
    return Dataset.from_dict({name: [row[name].tolist()] for name in ("input_ids", "labels")})


def _require_data_parallel(trainer: CachedDistillation) -> None:
    """Raise `UserError` where rows or the head are not whole in one process."""
    if trainer.args.n_gpu > 1:
        raise UserError("one process for several GPUs (DataParallel) is not supported; start with torchrun")
    layout = getattr(trainer.accelerator, "parallelism_config", None)
    if layout is not None and (layout.tp_enabled or layout.cp_enabled or layout.sp_enabled):
        raise UserError("tensor, context and sequence parallelism are not supported; use DDP, FSDP or ZeRO")
