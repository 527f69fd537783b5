"""The order of rows in a Trainer's checkpoint: training goes on in the same order, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerState, TrainingArguments

from cached_distillation.order import OrderState, require_same_order

FILE = "cache_order.json"


class KeepsOrder(TrainerCallback):
    """Writes the order beside what the Trainer keeps."""

    def __init__(self, order: Callable[[], OrderState]) -> None:
        self._order = order

    def on_save(self, args: TrainingArguments, state: TrainerState, control: object, **_: object) -> None:  # noqa: ARG002
        """Write it into the checkpoint that was just made."""
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / FILE).write_text(json.dumps(self._order()), encoding="utf-8")


def require_order_of(checkpoint: Path, order: OrderState) -> None:
    """Raise `UserError` where the checkpoint's order is another; one without the file is taken as it is."""
    file = checkpoint / FILE
    if file.is_file():
        require_same_order(json.loads(file.read_text(encoding="utf-8")), order)
