"""A transformer of the size of the paper's student: blocks of the teacher's own kind, as many trained parameters."""

import torch

from delta_common.errors import UserError
from student.model.causal_lm.student import configured
from student.model.frozen import FrozenWeights
from student.model.shape import StudentShape
from student.model.transplant.families import Config
from student.model.xlstm import build_student

MULTIPLE = 8
"""Widths of feed-forward layers are multiples of this, as GPUs multiply 16-bit matrices fast."""


def parameters_of(shape: StudentShape) -> int:
    """Trained parameters of the xLSTM student of a shape."""
    with torch.device("meta"):
        frozen = FrozenWeights(torch.empty(0, shape.hidden_size), None, None, 0)
        return build_student(shape, frozen, context_length=1, seed=0).parameter_counts().trainable


def sized_like(teacher: Config, shape: StudentShape) -> Config:
    """The teacher's configuration with fewer blocks and another feed-forward width.

    As many blocks as the xLSTM student of `shape` has, and the width that brings its trained parameters nearest to that
    one's. Where attention alone is so large that this width would be below half the hidden size, fewer blocks. Raises
    `UserError` for a teacher whose blocks have no such width.
    """
    wanted = parameters_of(shape)
    for blocks in range(shape.blocks, 0, -1):
        narrow, wide = (_counted(_with(teacher, blocks, width)) for width in (MULTIPLE, 2 * MULTIPLE))
        if wide == narrow:
            raise UserError(
                f"model.preset transformer: blocks of a {teacher.get('model_type')} have no one feed-forward width to "
                "set; take another teacher, or name a student with model.hf"
            )
        width = MULTIPLE * max(1, 1 + round((wanted - narrow) / (wide - narrow)))
        if 2 * width >= shape.hidden_size or blocks == 1:
            break
    return _with(teacher, blocks, width)


def _with(teacher: Config, blocks: int, width: int) -> Config:
    """The configuration with lists of a value per layer cut to the blocks, or begun again behind their end."""
    layers = teacher.get("num_hidden_layers")
    if not isinstance(layers, int) or "intermediate_size" not in teacher:
        raise UserError(
            f"model.preset transformer: a {teacher.get('model_type')} does not say num_hidden_layers and "
            "intermediate_size; take another teacher, or name a student with model.hf"
        )
    cut = {
        name: [value[block % layers] for block in range(blocks)]
        if isinstance(value, list) and len(value) == layers
        else value
        for name, value in teacher.items()
    }
    return {**cut, "num_hidden_layers": blocks, "intermediate_size": width}


def _counted(config: Config) -> int:
    """Parameters without embedding and head."""
    from transformers import AutoModelForCausalLM  # takes seconds, and most students need none of it

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configured(config))
    around = {
        id(p) for part in (model.get_input_embeddings(), model.get_output_embeddings()) for p in part.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in around)
