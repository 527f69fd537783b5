"""Settings, and folders of models, that students of transformers are made from in a second."""

from pathlib import Path

from delta_common.settings_file import load_settings
from student.settings import TrainSettings
from tests.helpers.small_llama import small_llama
from tests.helpers.tokenizers_for_tests import byte_tokenizer

VOCAB = 288
QUICK = [
    *("--training.micro_batch_size=2", "--training.gradient_accumulation=2", "--training.checkpoint_every=2"),
    *("--training.max_steps=6", "--optimizer.learning_rate=3e-3", "--distillation.temperature_init=1.5"),
    *("--distillation.frobenius.weight_init=0", "--distillation.frobenius.weight_final=0"),
]


def save_llama(folder: Path, vocab_size: int = VOCAB, **config: object) -> Path:
    """A small Llama with random weights, and the tokenizer of the tests' teachers."""
    small_llama(vocab_size, **config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def causal_settings(*options: str) -> TrainSettings:
    """`QUICK` and options."""
    return load_settings(TrainSettings, None, [*QUICK, *options])
