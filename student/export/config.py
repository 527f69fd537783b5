"""The configuration of an export, of either kind of student."""

from collections.abc import Mapping
from dataclasses import asdict

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from delta_common.errors import UserError
from student.inference.hf import DistilTransplantForCausalLM, DistilXLSTMForCausalLM
from student.inference.hf_config import DistilTransplantConfig, DistilXLSTMConfig, Fields, StudentConfig
from student.model.frozen import FROZEN_NAMES
from student.model.shape import TeacherDims, resolve_shape
from student.model.transplant.options import mixer_shape
from student.run.files import RunFiles, RunSummary
from student.run.student import config_of
from teacher_cache.read.cache import Cache


def make_config(files: RunFiles, summary: RunSummary, cache: Cache, frozen: Mapping[str, Tensor]) -> StudentConfig:
    """The export's configuration, with its provenance: teacher, cache, steps and settings.

    `frozen` are the teacher's matrices, as `frozen_tensors` gives them.
    """
    shared = _shared(files, summary, cache, frozen)
    if files.settings.model.begins_as_teacher:
        return _transplant(files, cache, shared)
    manifest = cache.manifest
    dims = TeacherDims(manifest.hidden_size, manifest.num_layers, manifest.num_heads)
    shape = resolve_shape(files.settings.model, dims)
    return DistilXLSTMConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        slstm_at=list(shape.slstm_at),
        conv_kernel=shape.conv_kernel,
        qkv_block_size=shape.qkv_block_size,
        mlstm_proj_factor=shape.mlstm_proj_factor,
        slstm_ffn_factor=shape.slstm_ffn_factor,
        architectures=[DistilXLSTMForCausalLM.__name__],
        **shared,
    )


def _transplant(files: RunFiles, cache: Cache, shared: Fields) -> StudentConfig:
    manifest = cache.manifest
    return DistilTransplantConfig(
        hidden_size=manifest.hidden_size,
        num_hidden_layers=manifest.num_layers,
        num_attention_heads=manifest.num_heads,
        teacher_config=dict(config_of(files.path, files.settings.model) or {}),
        mixer=asdict(mixer_shape(files.settings.model)),
        architectures=[DistilTransplantForCausalLM.__name__],
        **shared,
    )


def _shared(files: RunFiles, summary: RunSummary, cache: Cache, frozen: Mapping[str, Tensor]) -> Fields:
    """What the configurations of both kinds of student have."""
    manifest = cache.manifest
    return {
        "vocab_size": manifest.vocab_size,
        "padded_vocab_size": manifest.padded_vocab_size,
        "embedding_scale": summary.embedding_scale,
        "logit_transform": None if summary.logit_transform is None else summary.logit_transform.model_dump(),
        "tie_word_embeddings": "lm_head" not in frozen,
        "head_bias": "lm_head_bias" in frozen,
        "eos_token_id": manifest.eos_token_id,
        "pad_token_id": manifest.tokenizer.pad_token_id,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "provenance": {
            "teacher": manifest.teacher.model_dump(mode="json"),
            "cache_fingerprint": cache.fingerprint,
            **({"caches": [each.model_dump(mode="json") for each in summary.caches]} if summary.caches else {}),
            "context": manifest.rows.context,
            "seq_len": manifest.seq_len,
            "steps": summary.steps,
            "begun_from": [origin.model_dump(mode="json") for origin in summary.begun_from],
            "settings": files.settings.model_dump(mode="json"),
        },
        "dtype": "float32",
    }


def frozen_tensors(cache: Cache) -> dict[str, Tensor]:
    """The teacher's matrices as the cache stores them, by their names in the student. Raises `UserError` if damaged."""
    path = cache.frozen_weights
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the teacher's frozen weights are not readable: {error}") from error
    return {ours: stored[name] for name, ours in FROZEN_NAMES.items() if name in stored}
