"""Students and a teacher with byte tokenizers, to answer tasks in a moment."""

from pathlib import Path

from student.evaluate.tasks.examples import Example, Task
from student.inference.load import Writer
from student.inference.plain import load_plain
from tests.helpers.small_students import small_model
from tests.helpers.tiny_teacher import save_tiny_teacher
from tests.helpers.tokenizers_for_tests import EOS, byte_tokenizer

KINDS = ("xlstm", "transplant", "hybrid", "transformer")
CONTEXT = 600
"""Of the transformer."""


def small_writer(kind: str, folder: Path) -> Writer:
    """A student of a kind with random weights; the folder is for the transformer's."""
    if kind == "transformer":
        save_tiny_teacher(folder, max_position_embeddings=CONTEXT)
        return Writer(load_plain(folder, EOS + 1).eval(), byte_tokenizer(), EOS)
    model = small_model(kind, vocab_size=EOS + 1, padded_vocab_size=288, eos_token_id=EOS, pad_token_id=EOS)
    return Writer(model.student, byte_tokenizer(), EOS)


def task_of(*examples: Example) -> Task:
    return Task("made", examples)
