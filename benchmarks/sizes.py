"""The students and teachers of random weights that the benchmarks of a step and of generation run."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from delta_common.settings_file import load_settings
from student.model.frozen import FrozenWeights
from student.model.shape import TeacherDims, resolve_shape
from student.model.transplant.options import HYBRID, TRANSPLANT
from student.model.transplant.student import TransplantStudent, build_transplant
from student.model.xlstm import XLSTMStudent, build_student
from student.settings import TrainSettings

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Sizes:
    """A student's configuration and its batch; the teacher's body, which only some cases run."""

    config: str
    width: int
    vocab: int
    rows: int
    seq_len: int
    teacher_layers: int
    teacher_heads: int
    teacher_kv_heads: int
    teacher_ffn: int


SIZES = {
    "demo": Sizes("demo-student.yaml", 576, 49152, 8, 256, 30, 9, 3, 1536),
    "paper": Sizes("paper-student.yaml", 1536, 151936, 2, 512, 28, 12, 2, 8960),
    "tiny": Sizes("demo-student.yaml", 96, 300, 4, 16, 2, 4, 2, 96),
}


@dataclass(frozen=True)
class QwenSize:
    """A model of Qwen2's kind: its dimensions, the rows of its head, those that are tokens, and a row's length."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    real_vocab: int
    seq_len: int

    def config(self, **more: Any) -> transformers.Qwen2Config:
        """Its configuration, and what else the configuration is to say."""
        return transformers.Qwen2Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            tie_word_embeddings=True,
            max_position_embeddings=32_768,
            **more,
        )


def add_size(parser: argparse.ArgumentParser, paper_help: str) -> None:
    """`--paper` and `--tiny`, which name one of `SIZES` in place of the demo's."""
    size = parser.add_mutually_exclusive_group()
    parser.set_defaults(size="demo")
    size.add_argument("--paper", dest="size", action="store_const", const="paper", help=paper_help)
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="to see that it runs")
    size.add_argument("--size", help=argparse.SUPPRESS)


def random_student(sizes: Sizes, frozen: FrozenWeights, *, context_length: int, seed: int) -> XLSTMStudent:
    """A student of the configuration's shape on these frozen matrices."""
    settings = load_settings(TrainSettings, CONFIGS / sizes.config)
    shape = resolve_shape(settings.model, TeacherDims(sizes.width, sizes.teacher_layers, sizes.teacher_heads))
    return build_student(shape, frozen, context_length=context_length, seed=seed)


def random_transplant(sizes: Sizes, frozen: FrozenWeights, preset: str, *, seed: int) -> TransplantStudent:
    """A student with the layers of such a teacher, of random weights, on these frozen matrices."""
    shape = {"transplant": TRANSPLANT, "hybrid": HYBRID}[preset]
    return build_transplant(teacher_config(sizes).to_dict(), frozen, None, shape, seed=seed)


def teacher_config(sizes: Sizes) -> transformers.LlamaConfig:
    """The teacher's configuration."""
    return transformers.LlamaConfig(
        hidden_size=sizes.width,
        vocab_size=sizes.vocab,
        num_hidden_layers=sizes.teacher_layers,
        num_attention_heads=sizes.teacher_heads,
        num_key_value_heads=sizes.teacher_kv_heads,
        intermediate_size=sizes.teacher_ffn,
        tie_word_embeddings=True,
    )


def random_teacher(sizes: Sizes, seed: int, device: torch.device) -> Any:
    """A Llama of random weights, in bfloat16 on a GPU and in float32 on a CPU."""
    torch.manual_seed(seed)
    with device:
        teacher = transformers.LlamaForCausalLM(teacher_config(sizes)).eval()
    return teacher.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
