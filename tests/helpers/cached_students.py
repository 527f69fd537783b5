"""An untrained student over rows of a synthetic cache, beside the teacher's logits as it had them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from student.data.batch import Batch
from student.loss.distillation import LossSums
from student.loss.naive import dense_distillation_loss, distillation_loss_sums
from student.model.frozen import FrozenHead, read_frozen_weights
from teacher_cache.build.synthetic import SyntheticSettings, SyntheticTeacher, make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache


@dataclass(frozen=True)
class Student:
    """States of an untrained student over rows of a synthetic cache, and the teacher's logits as it had them."""

    cache: Cache
    batch: Batch
    hidden: Tensor
    head: FrozenHead
    teacher_logits: Tensor

    def offline(self, temperature: float, **options: Any) -> LossSums:
        return distillation_loss_sums(self.hidden, self.head, self.batch, temperature=temperature, **options)

    def online(self, temperature: float) -> LossSums:
        return dense_distillation_loss(self.hidden, self.head, self.batch, self.teacher_logits, temperature=temperature)

    def gradient(self, sums: LossSums) -> Tensor:
        """Of CE + KL in the student's states."""
        (found,) = torch.autograd.grad(sums.cross_entropy + sums.kl, self.hidden)
        return found


def make_student(path: Path, *, top_k: int = 8, **fields: Any) -> Student:
    sizes = SyntheticSettings(
        rows=6, seq_len=10, vocab_size=90, top_k=top_k, hidden_size=40, dtype="float32", value_dtype="float32", **fields
    )
    cache = open_cache(make_synthetic_cache(path, **vars(sizes)))
    batch = Batch.of(cache.rows(range(6)), cache, torch.device("cpu"))
    frozen = read_frozen_weights(cache.frozen_weights, padded_vocab_size=90, vocab_size=90, hidden_size=40)
    assert frozen.lm_head is not None
    teacher = SyntheticTeacher(sizes)
    before = torch.cat([torch.zeros(6, 1, dtype=torch.int64), batch.inputs[:, :-1]], dim=1)
    states = teacher.states(batch.inputs.flatten(), before.flatten())
    hidden = torch.randn(6, 10, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
    return Student(cache, batch, hidden, FrozenHead(frozen.lm_head), teacher.logits(states).view(6, 10, 90))
