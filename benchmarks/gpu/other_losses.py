"""`student-train` with another loss in the place of its own: what a step costs without the cache.

Usage: python -m benchmarks.gpu.other_losses ce|online|chunks TEACHER_FOLDER OPTIONS_OF_STUDENT_TRAIN...

`ce` is the next token's cross-entropy alone, by the same pass over the logits; no target is looked at. `online` runs
the teacher in every step, as trainers do: its full logits, and all of the student's, through `dense_distillation_loss`.
`chunks` is the least that an online teacher can cost: it is run without its head, and its final states go through the
head beside the student's, a chunk of positions at a time.
"""

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from student.data.batch import AveragedStates, Batch, GlobalCounts
from student.loss.distillation import DistillationLoss, LossSums, loss_against
from student.loss.divergence import ExactDivergence
from student.loss.frobenius import FrobeniusTerm
from student.loss.naive import dense_distillation_loss, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead


def next_token(
    hidden_states: Tensor, head: FrozenHead, batch: Batch, _: Coefficients, counts: GlobalCounts, **__: Any
) -> DistillationLoss:
    """Cross-entropy alone."""
    return loss_against(None, hidden_states, head, batch, Coefficients(alpha=0.0, temperature=1.0, beta=0.0), counts)


class Online:
    """A loss with a teacher that is run on the batch, without boundaries of documents; its head whole or in chunks."""

    def __init__(self, folder: str, *, in_chunks: bool) -> None:
        self.folder, self.in_chunks = folder, in_chunks
        self._teacher: Any = None

    def teacher_on(self, device: torch.device) -> Any:
        """The teacher, loaded when it is first asked for."""
        if self._teacher is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            self._teacher = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).to(device)
            self._teacher.eval()
        return self._teacher

    def __call__(
        self,
        hidden_states: Tensor,
        head: FrozenHead,
        batch: Batch,
        coefficients: Coefficients,
        counts: GlobalCounts,
        *,
        frobenius: FrobeniusTerm | None,
        **_: Any,
    ) -> DistillationLoss:
        """The loss, as `student.loss.distillation.distillation_loss` gives it."""
        teacher, temperature = self.teacher_on(hidden_states.device), coefficients.temperature
        with torch.no_grad():
            asked = teacher.base_model if self.in_chunks else teacher
            found = asked(batch.inputs, output_hidden_states=True, use_cache=False)
        known = with_mean_of(batch, found.hidden_states)
        if self.in_chunks:
            final = found.last_hidden_state.flatten(0, 1)[batch.valid_positions].to(head.weight)
            divergence = ExactDivergence(temperature, final, head)
            return loss_against(divergence, hidden_states, head, known, coefficients, counts, frobenius=frobenius)
        sums = dense_distillation_loss(
            hidden_states, head, known, found.logits, temperature=temperature, frobenius=frobenius
        )
        total = total_loss(sums, coefficients, counts)
        return DistillationLoss(total, LossSums(*(each.detach() for each in vars(sums).values())))


def with_mean_of(batch: Batch, hidden_states: tuple[Tensor, ...]) -> Batch:
    """The batch with the mean of the layers' states, the embedding left out."""
    mean = torch.zeros_like(hidden_states[0], dtype=torch.float32)
    for states in hidden_states[1:]:
        mean += states
    return replace(batch, averaged=AveragedStates.everywhere(mean / (len(hidden_states) - 1)))


def main() -> None:
    """Replace the loss, and be `student-train`."""
    from student.train import loop

    name, folder = sys.argv[1:3]
    del sys.argv[1:3]
    losses: dict[str, Callable[..., DistillationLoss]] = {
        "ce": next_token,
        "online": Online(folder, in_chunks=False),
        "chunks": Online(folder, in_chunks=True),
    }
    loop.distillation_loss = losses[name]
    runpy.run_module("student", run_name="__main__")


if __name__ == "__main__":
    main()
