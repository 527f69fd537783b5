"""transformers' Trainer, distilling: its order, its numbers, its checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from cached_distillation.batch import collate
from cached_distillation.dataset import CacheDataset
from cached_distillation.loader import CacheLoader
from cached_distillation.trainer.evaluate import row_sums
from cached_distillation.trainer.mixin import CachedDistillation
from delta_common.errors import UserError
from student.loss.schedule import Coefficients
from tests.helpers.small_llama import COEFFICIENTS, assert_same_gradients, gradients_of, naive_step, small_llama
from tests.helpers.tokenizers_for_tests import byte_tokenizer


class DistillationTrainer(CachedDistillation, Trainer):
    """As a user writes it."""


def arguments(folder: Path, **fields: object) -> TrainingArguments:
    common = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), **{**common, **quiet, "logging_steps": 1, "save_strategy": "no", **fields})


class Gradients(TrainerCallback):
    """Keeps those of the first step."""

    found: dict[str, torch.Tensor]

    def on_pre_optimizer_step(
        self, args: object, state: object, control: object, model: nn.Module, **_: object
    ) -> None:
        self.found = gradients_of(model)


def test_a_step_is_the_naive_twins(dataset: CacheDataset, tmp_path: Path) -> None:
    model, gradients = small_llama(72), Gradients()
    trainer = DistillationTrainer(
        model, arguments(tmp_path, max_steps=1), train_dataset=dataset, distillation=COEFFICIENTS, callbacks=[gradients]
    )
    trainer.train()
    model = small_llama(72)
    loss, expected = naive_step(model, model.lm_head, next(CacheLoader(dataset, batch_size=2, accumulation=2).steps()))
    assert_same_gradients(gradients.found, expected)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss, rel=1e-5)
    alpha, temperature = COEFFICIENTS.alpha, COEFFICIENTS.temperature
    parts = (1 - alpha) * logged["cross_entropy"] + alpha * temperature**2 * logged["kl"]
    assert parts == pytest.approx(loss, rel=1e-5)
    assert (logged["alpha"], logged["temperature"]) == (alpha, temperature)


def test_a_run_that_was_stopped_ends_with_the_same_weights(dataset: CacheDataset, tmp_path: Path) -> None:
    def train(name: str, resume: Path | None = None) -> DistillationTrainer:
        args = arguments(tmp_path / name, num_train_epochs=2, save_strategy="steps", save_steps=5, learning_rate=1e-2)
        trainer = DistillationTrainer(small_llama(), args, train_dataset=dataset)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    whole = train("whole")
    assert whole.state.global_step == 16
    for step in (5, 10):  # in the first epoch, and in the second
        resumed = train(f"resumed-{step}", tmp_path / "whole" / f"checkpoint-{step}")
        pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_checkpoint_of_another_order_is_refused(dataset: CacheDataset, tmp_path: Path) -> None:
    def train(resume: bool, **fields: object) -> None:
        args = arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=2, **fields)
        DistillationTrainer(small_llama(), args, train_dataset=dataset).train(resume_from_checkpoint=resume)

    train(resume=False)
    train(resume=True)
    with pytest.raises(UserError, match="the state's global_batch is 4, this run's is 2; continue with the same"):
        train(resume=True, gradient_accumulation_steps=1)


def test_measured_is_the_mean_over_tokens(dataset: CacheDataset, tmp_path: Path) -> None:
    model = small_llama()
    trainer = DistillationTrainer(
        model, arguments(tmp_path, per_device_eval_batch_size=5), train_dataset=dataset, eval_dataset=dataset
    )
    found = trainer.evaluate()
    cross_entropy, kl, tokens = row_sums(model, collate([dataset[row] for row in range(32)])).sum(0).tolist()
    assert found["eval_loss"] == pytest.approx(cross_entropy / tokens, rel=1e-6)
    assert found["eval_kl"] == pytest.approx(kl / tokens, rel=1e-6)


def test_what_does_not_fit_is_refused_before_training(dataset: CacheDataset, tmp_path: Path) -> None:
    def made(**given: object) -> DistillationTrainer:
        return DistillationTrainer(small_llama(), arguments(tmp_path), train_dataset=dataset, **given)

    with pytest.raises(UserError, match="another tokenizer than the student's"):
        made(processing_class=byte_tokenizer())
    with pytest.raises(UserError, match="temperature 5 is outside the cached range"):
        made(distillation=Coefficients(0.5, 5.0, 0.0))
    trainer = DistillationTrainer(small_llama(60), arguments(tmp_path, max_steps=1), train_dataset=dataset)
    with pytest.raises(UserError, match="lm_head has 60 rows, the cache's tokenizer 64 tokens: another vocabulary"):
        trainer.train()
    with pytest.raises(UserError, match="rows of a dict: give a CacheDataset"):
        made(eval_dataset=[{"input_ids": [1]}]).evaluate()
