"""A model of transformers loaded as a student: what student-export writes of one, or any other."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from delta_common.errors import UserError
from student.model.causal_lm.probes import logit_transform
from student.model.causal_lm.student import CausalLMStudent

DAMAGED = (
    *(OSError, ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError, LookupError, AttributeError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers and we raise over files that do not fit together."""


@torch.no_grad()
def load_plain(path: Path, vocab_size: int) -> CausalLMStudent:
    """A folder with a causal LM of transformers, in float32 on the CPU, over the first `vocab_size` tokens.

    Raises `UserError` when it is none, a file is missing or damaged, or it changes its logits in an unknown way.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except DAMAGED as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: not a causal LM that transformers can load ({said})") from error
    wrong = sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])})
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is missing or not the model's; give a folder with all of its weights")
    student = CausalLMStudent(model, vocab_size).eval()
    student.logit_transform = logit_transform(student, str(path))
    return student
