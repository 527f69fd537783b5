"""A finished run as a model that loads by itself: safetensors, configuration, tokenizer, model card.

Tensors keep their values and types: the frozen matrices those of the cache, the trained parameters those of
`trained.safetensors`. float32 holds all of them exactly, and an export is loaded in it, so nothing is rounded.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from delta_common.errors import UserError
from delta_common.files import parse_json, settle_on_disk, staging_path
from delta_common.tokenizer import is_digest_of, tokenizer_digest
from student.export.card import CARD_FILE, model_card, plain_card
from student.export.config import frozen_tensors, make_config
from student.export.plain import write_plain
from student.inference.hf import model_class
from student.inference.hf_config import CONFIGS, StudentConfig
from student.inference.load import CONFIG_FILE, STUDENT_PREFIX, WEIGHTS_FILE
from student.run.files import PROVENANCE_FILE, TRAINED_FILE, RunFiles, RunSummary, read_run
from teacher_cache.read.cache import Cache, open_cache


def export_student(run: Path, out: Path, cache: str | None = None) -> int:
    """Write a finished run's student to the folder `out`; return its size in bytes.

    `cache` says where the cache trained on is now, if it was moved. `out` appears whole or not at all; an earlier
    export there is replaced. Raises `UserError` when the run has not finished, the cache or its tokenizer is
    another, or `out` holds anything else.
    """
    files = read_run(run)
    summary = _finished(files)
    trained_on = _cache_of(files.path, summary, cache)
    frozen, manifest = frozen_tensors(trained_on), trained_on.manifest
    with _published(out) as staged:
        if files.settings.model.is_causal_lm:
            card = plain_card(files, summary, manifest, write_plain(files, summary, manifest, frozen, staged))
        else:
            card = model_card(files, summary, manifest, _write_ours(files, summary, trained_on, frozen, staged))
        if trained_on.tokenizer_folder is not None:
            _write_tokenizer(trained_on, staged)
        (staged / CARD_FILE).write_text(card, encoding="utf-8")
    return sum(file.stat().st_size for file in out.iterdir())


def _write_ours(
    files: RunFiles, summary: RunSummary, cache: Cache, frozen: Mapping[str, Tensor], folder: Path
) -> dict[str, torch.dtype]:
    """Write weights and configurations; returns the tensors' types by name."""
    config = make_config(files, summary, cache, frozen)
    tensors = _tensors(files.path, frozen, config)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)
    _generation_config(config).save_pretrained(folder)
    return {name: tensor.dtype for name, tensor in tensors.items()}


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


def _tensors(run: Path, frozen: Mapping[str, Tensor], config: StudentConfig) -> dict[str, Tensor]:
    """All tensors by their names in the model, their shapes checked against it."""
    try:
        trained = load_file(run / TRAINED_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{run / TRAINED_FILE}: not readable ({error}); run student-train again") from error
    found = {f"{STUDENT_PREFIX}{name}": tensor for name, tensor in (*frozen.items(), *trained.items())}
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in model_class(config)(config).state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or found[name].shape != expected.get(name):
            raise UserError(f"{run / TRAINED_FILE}: {name} is not as the run's settings say; run student-train again")
    return found


def _generation_config(config: StudentConfig) -> GenerationConfig:
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
        if (folder / PROVENANCE_FILE).is_file():  # of a model of transformers
            return True
        return said["model_type"] in [config.model_type for config in CONFIGS]
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
