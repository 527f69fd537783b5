"""How far training has come: batches taken, and how many of them moved the parameters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Steps, each a global batch read, and updates, each a step the optimizer carried out.

    A step whose gradient is not finite is skipped: its batch has been read, but nothing was learnt from it.
    The order of the rows follows steps; learning rate, α, T and β follow updates.
    """

    steps: int = 0
    updates: int = 0
    """Updates since the start of training."""
    epoch_updates: int = 0
    """Updates since the start of the epoch of the next step."""

    def after_step(self, *, applied: bool, ends_epoch: bool) -> "Progress":
        """Where training stands one step later."""
        epoch_updates = 0 if ends_epoch else self.epoch_updates + applied
        return Progress(self.steps + 1, self.updates + applied, epoch_updates)
