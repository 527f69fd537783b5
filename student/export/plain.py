"""A student that is a model of transformers, written as transformers does: it loads without any code of ours."""

from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

from delta_common.errors import UserError
from delta_common.files import write_atomically
from student.model.causal_lm.student import CausalLMStudent, build_causal_lm
from student.run.files import PROVENANCE_FILE, TRAINED_FILE, Provenance, RunFiles, RunSummary
from student.run.student import config_of
from teacher_cache.format.manifest import Manifest

INNER = "model."
"""What names within a student begin with that are the model's own."""


def write_plain(
    files: RunFiles, summary: RunSummary, manifest: Manifest, frozen: dict[str, Tensor], folder: Path
) -> torch.dtype:
    """Write weights, configurations and provenance to a folder; returns the type of the weights.

    `frozen` are the teacher's matrices, as the cache stores them, for the preset that is built around them. Rows of
    embedding and head for padding are left out. The type is the narrowest that holds all numbers exactly. Raises
    `UserError` where the run's parameters are not its student's.
    """
    config = config_of(files.path, files.settings.model)
    assert config is not None
    with torch.device("meta"):
        student = build_causal_lm(config, manifest.vocab_size, seed=0)
    around = {} if files.settings.model.hf else _around(student, frozen)
    tensors = _stored(files.path / TRAINED_FILE) | around
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    names = {name for name, _ in student.model.named_parameters()}
    if tensors.keys() != names:
        wrong = min(tensors.keys() ^ names)
        raise UserError(
            f"{files.path / TRAINED_FILE}: {wrong} is not as the run's settings say; run student-train again"
        )
    model = student.model
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, strict=False, assign=True)
    model.tie_weights()
    # Nothing was learnt of rows for padding: left in, they would take part in every softmax.
    model.resize_token_embeddings(manifest.vocab_size)
    model.generation_config = GenerationConfig(
        eos_token_id=manifest.eos_token_id, pad_token_id=manifest.tokenizer.pad_token_id
    )
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    said = Provenance.model_validate(summary.model_dump(include=set(Provenance.model_fields)))
    write_atomically(folder / PROVENANCE_FILE, said.model_dump_json(indent=1).encode() + b"\n")
    return dtype


def _around(student: CausalLMStudent, frozen: dict[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's matrices by the model's names for them."""
    model, names = student.model, {id(p): name for name, p in student.model.named_parameters()}
    head = model.get_output_embeddings()
    places = {
        id(model.get_input_embeddings().weight): frozen["embedding"],
        id(head.bias): frozen.get("lm_head_bias"),
    }
    if head.weight is not model.get_input_embeddings().weight:
        places[id(head.weight)] = frozen.get("lm_head", frozen["embedding"])
    return {names[place]: tensor for place, tensor in places.items() if tensor is not None}


def _stored(file: Path) -> dict[str, Tensor]:
    try:
        return {name.removeprefix(INNER): tensor for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not readable ({error}); run student-train again") from error
