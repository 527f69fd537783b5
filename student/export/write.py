"""A finished run as a model that loads by itself: safetensors, configuration, tokenizer, model card.

Tensors keep their values and types: the frozen matrices those of the cache, the trained parameters those of
`trained.safetensors`. float32 holds all of them exactly, and an export is loaded in it, so nothing is rounded.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from delta_common.errors import UserError
from delta_common.files import parse_json, settle_on_disk, staging_path
from delta_common.tokenizer import is_digest_of, tokenizer_digest
from student.export.card import CARD_FILE, model_card
from student.inference.hf import DistilXLSTMForCausalLM
from student.inference.hf_config import DistilXLSTMConfig
from student.inference.load import CONFIG_FILE, WEIGHTS_FILE
from student.model.shape import TeacherDims, resolve_shape
from student.run.files import TRAINED_FILE, RunFiles, RunSummary, read_run
from teacher_cache.read.cache import Cache, open_cache

FROZEN_NAMES = {"embedding.weight": "embedding", "lm_head.weight": "lm_head", "lm_head.bias": "lm_head_bias"}
"""Names in a cache, and in the student."""


def export_student(run: Path, out: Path, cache: str | None = None) -> int:
    """Write a finished run's student to the folder `out`; return its size in bytes.

    `cache` says where the cache trained on is now, if it was moved. `out` appears whole or not at all; an earlier
    export there is replaced. Raises `UserError` when the run has not finished, the cache or its tokenizer is
    another, or `out` holds anything else.
    """
    files = read_run(run)
    summary = _finished(files)
    trained_on = _cache_of(files.path, summary, cache)
    config = make_config(files, summary, trained_on)
    tensors = _tensors(files.path, trained_on, config)
    with _published(out) as staged:
        save_file(tensors, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(staged)
        _generation_config(config).save_pretrained(staged)
        if trained_on.tokenizer_folder is not None:
            _write_tokenizer(trained_on, staged)
        card = model_card(files, summary, trained_on.manifest, {name: t.dtype for name, t in tensors.items()})
        (staged / CARD_FILE).write_text(card, encoding="utf-8")
    return sum(file.stat().st_size for file in out.iterdir())


def _finished(files: RunFiles) -> RunSummary:
    """The run's summary. Raises `UserError` saying what is missing when the run has not finished."""
    done = files.metrics[-1]["step"] if files.metrics else 0
    again = "run its student-train command again to its end"
    if files.plan is not None and done < files.plan.total_steps:
        total = files.plan.total_steps
        missing = f"{total - done:,} of {total:,} steps are missing"
        raise UserError(f"{files.path}: the run has not finished, {missing}; {again}")
    if files.summary is None or not (files.path / TRAINED_FILE).is_file():
        raise UserError(f"{files.path}: the run has not written its result after {done:,} steps; {again}")
    return files.summary


def _cache_of(run: Path, summary: RunSummary, given: str | None) -> Cache:
    where = summary.cache if given is None else given
    try:
        cache = open_cache(where)
    except UserError as error:
        if given is not None:
            raise
        raise UserError(f"{error} ({run} was trained on it; if it has moved, give --cache)") from error
    if cache.fingerprint != summary.cache_fingerprint:
        raise UserError(
            f"{where}: not the cache that {run} was trained on ({cache.fingerprint[:12]}…, that was "
            f"{summary.cache_fingerprint[:12]}…); give that one with --cache"
        )
    return cache


def make_config(files: RunFiles, summary: RunSummary, cache: Cache) -> DistilXLSTMConfig:
    """The export's configuration, with its provenance: teacher, cache, steps and settings."""
    manifest = cache.manifest
    if files.settings.model.begins_as_teacher:
        raise UserError(
            f"{files.path}: a student of model.preset {files.settings.model.preset} has no form for transformers yet; "
            "evaluate it with student-eval"
        )
    shape = resolve_shape(
        files.settings.model, TeacherDims(manifest.hidden_size, manifest.num_layers, manifest.num_heads)
    )
    with _opened(cache.frozen_weights) as frozen:
        names = set(frozen.keys())
    return DistilXLSTMConfig(
        vocab_size=manifest.vocab_size,
        padded_vocab_size=manifest.padded_vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        slstm_at=list(shape.slstm_at),
        conv_kernel=shape.conv_kernel,
        qkv_block_size=shape.qkv_block_size,
        mlstm_proj_factor=shape.mlstm_proj_factor,
        slstm_ffn_factor=shape.slstm_ffn_factor,
        embedding_scale=summary.embedding_scale,
        tie_word_embeddings="lm_head.weight" not in names,
        head_bias="lm_head.bias" in names,
        eos_token_id=manifest.eos_token_id,
        pad_token_id=manifest.tokenizer.pad_token_id,
        tokenizer_sha256=manifest.tokenizer_sha256,
        provenance={
            "teacher": manifest.teacher.model_dump(mode="json"),
            "cache_fingerprint": cache.fingerprint,
            "context": manifest.rows.context,
            "seq_len": manifest.seq_len,
            "steps": summary.steps,
            "settings": files.settings.model_dump(mode="json"),
        },
        architectures=[DistilXLSTMForCausalLM.__name__],
        dtype="float32",
    )


def _tensors(run: Path, cache: Cache, config: DistilXLSTMConfig) -> dict[str, Tensor]:
    """All tensors by their names in the model, their shapes checked against it."""
    with _opened(cache.frozen_weights) as frozen:
        names = set(frozen.keys())
        found = {f"student.{ours}": frozen.get_tensor(n) for n, ours in FROZEN_NAMES.items() if n in names}
    try:
        found |= {f"student.{name}": tensor for name, tensor in load_file(run / TRAINED_FILE).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{run / TRAINED_FILE}: not readable ({error}); run student-train again") from error
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in DistilXLSTMForCausalLM(config).state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or found[name].shape != expected.get(name):
            raise UserError(f"{run / TRAINED_FILE}: {name} is not as the run's settings say; run student-train again")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the teacher's frozen weights are not readable: {error}") from error


def _generation_config(config: DistilXLSTMConfig) -> GenerationConfig:
    return GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)


def _write_tokenizer(cache: Cache, folder: Path) -> None:
    """The cache's tokenizer, set to pad on the left: a student cannot continue after padding."""
    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder, padding_side="left")
    wanted = cache.manifest.tokenizer_sha256
    if not is_digest_of(tokenizer, wanted):
        raise UserError(
            f"{cache.tokenizer_folder}: another tokenizer ({tokenizer_digest(tokenizer)[:12]}…) than the cache was "
            f"built with ({wanted[:12]}…); put the cache's own files back"
        )
    tokenizer.save_pretrained(folder)


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A temporary folder to write to; it becomes `out` once all of it is on disk."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = staging_path(out)
        staged.mkdir()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); give another folder") from error
    try:
        _require_ours(out)
        yield staged
        for file in staged.iterdir():
            settle_on_disk(file)
        _require_ours(out, {file.name for file in staged.iterdir()})
        _replace(out, staged)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out}: cannot be written ({error}); make room or give another folder") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _require_ours(out: Path, names: set[str] | None = None) -> None:
    """Raise `UserError` unless `out` is free, or an earlier export without files other than `names`."""
    if not out.exists() and not out.is_symlink():
        return
    remedy = "give another folder"
    if not out.is_dir() or out.is_symlink():
        raise UserError(f"--out {out}: is not a folder; {remedy}")
    there = {file.name for file in out.iterdir()}
    if there and not _is_export(out):
        raise UserError(f"--out {out}: has other files in it, such as {min(there)}; {remedy}")
    if names is not None and there - names:
        raise UserError(f"--out {out}: has files that are not of an export, such as {min(there - names)}; {remedy}")


def _is_export(folder: Path) -> bool:
    try:
        said = parse_json((folder / CONFIG_FILE).read_bytes())
        return bool(said["model_type"] == DistilXLSTMConfig.model_type)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(out: Path, staged: Path) -> None:
    if out.exists():
        before = staging_path(out)
        os.rename(out, before)
        os.rename(staged, out)
        shutil.rmtree(before)
    else:
        os.rename(staged, out)
