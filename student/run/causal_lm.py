"""Students that are models of transformers, for a cache: named with `model.hf`, or of the teacher's kind of blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from delta_common.errors import UserError
from delta_common.logits.configured import factors, without_transform
from delta_common.logits.transform import LogitTransform
from delta_common.tokenizer import is_digest_of
from student.inference.tokenizer import load_tokenizer
from student.model.causal_lm.probes import require_fit
from student.model.causal_lm.sizes import sized_like
from student.model.causal_lm.student import CausalLMStudent, build_causal_lm, without_dropout
from student.model.frozen import FrozenWeights
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.transplant.families import Config
from student.settings import TrainSettings
from teacher_cache.read.cache import Cache

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)
"""What transformers raises over a model that is not there, damaged, or of a kind it does not know."""


def causal_lm(
    settings: TrainSettings, cache: Cache, frozen: FrozenWeights | None, config: Config | None
) -> CausalLMStudent:
    """A student in float32 and in host memory, as `frozen` is: the teacher's matrices, for the `transformer` preset.

    With `config`, which a run keeps, its weights are random, to be loaded over. Raises `UserError` for another
    tokenizer or vocabulary, and for a model that cannot be a student of this cache.
    """
    named, seed, vocab_size = settings.model.hf, settings.training.seed, cache.manifest.vocab_size
    with _without_transform(settings.model):
        if named is not None and config is None:
            student = _named(named, cache, seed=seed if settings.model.hf_random else None)
        else:
            config = transformer_config(settings.model, cache) if config is None else config
            student = build_causal_lm(config, vocab_size, seed=seed, frozen=frozen)
        require_fit_to(student, cache, settings.model.kind)
    if named is None:
        _require_transform(student, settings.model, cache)
    if settings.training.recompute:
        student.recompute()
    return student


@contextmanager
def _without_transform(settings: StudentSettings) -> Iterator[None]:
    """Raise `UserError` where a family fails over a configuration that was to name nothing behind its head."""
    try:
        yield
    except UserError:
        raise
    # Families raise what they like: some divide by the cap that is gone, others hold their fields to a type.
    except Exception as error:
        if settings.head_transform != "none":
            raise
        raise UserError(
            "model.head_transform none: blocks of this teacher's kind cannot do without what it does behind its head "
            f"({first_line(error)}); set it to teacher"
        ) from error


def require_fit_to(student: CausalLMStudent, cache: Cache, where: str) -> None:
    """Raise `UserError` for a student that cannot learn from the rows of a cache, or be measured on them."""
    rows = cache.manifest.rows
    require_fit(student, row=rows.seq_len, documents=rows.context == "document", where=where)


def require_tokenizer(path: str | Path, cache: Cache, where: str) -> None:
    """Raise `UserError` unless the tokenizer of a model is the cache's."""
    try:
        tokenizer = load_tokenizer(path, cache.manifest.tokenizer_sha256)
    except UNREADABLE as error:
        said = first_line(error).rstrip(":")
        raise UserError(f"{where}: its tokenizer cannot be loaded ({said}); put its own beside it") from error
    if not is_digest_of(tokenizer, cache.manifest.tokenizer_sha256):
        raise UserError(
            f"{where}: another tokenizer than that of {cache.path}; name a student with the tokenizer of its teacher, "
            f"{cache.manifest.teacher_name}"
        )


def transformer_config(settings: StudentSettings, cache: Cache) -> Config:
    """The configuration of `model.preset transformer`: the teacher's blocks in the size of the paper's student."""
    manifest = cache.manifest
    dims = TeacherDims(manifest.hidden_size, manifest.num_layers, manifest.num_heads)
    teacher = teacher_config_for(settings, cache)
    if settings.head_transform == "none":
        teacher = without_transform(teacher)
    return sized_like(teacher, resolve_shape(settings, dims))


def _require_transform(student: CausalLMStudent, settings: StudentSettings, cache: Cache) -> None:
    """Raise `UserError` unless blocks of the teacher's kind do behind the head what the settings say."""
    wanted = cache.manifest.teacher.logit_transform if settings.head_transform == "teacher" else None
    config = student.model.config
    # A factor may also come before the head, as MiniCPM's, and is then followed as all that does.
    before = wanted is not None and wanted.cap is None and wanted.scale in factors(config.get_text_config(decoder=True))
    if student.logit_transform != wanted and not (before and student.logit_transform is None):
        kind = config.model_type
        raise UserError(
            f"model.head_transform {settings.head_transform}: the student's logits, of a {kind}, go through "
            f"{_words(student.logit_transform)} and not {_words(wanted)}; give the other value, or the teacher that "
            f"{cache.path} was built with"
        )


def _words(transform: LogitTransform | None) -> str:
    return "no transform" if transform is None else str(transform)


def teacher_config_for(settings: StudentSettings, cache: Cache) -> Config:
    """The teacher's configuration, from the cache or from `model.teacher`; `UserError` where neither has it."""
    if settings.teacher is None:
        config = cache.teacher_config
        if config is None:
            raise UserError(
                f"{settings.kind}: {cache.path} does not carry its teacher's configuration; name the teacher with "
                "--model.teacher, or build the cache with teacher.carry: body"
            )
        return config
    where, manifest = f"model.teacher {settings.teacher}", cache.manifest
    found = _config(settings.teacher, where).get_text_config(decoder=True)
    same = {
        "hidden size": (found.hidden_size, manifest.hidden_size),
        "number of layers": (found.num_hidden_layers, manifest.num_layers),
        "number of heads": (found.num_attention_heads, manifest.num_heads),
        "vocabulary": (found.vocab_size, manifest.padded_vocab_size),
    }
    for name, (theirs, ours) in same.items():
        if theirs != ours:
            raise UserError(
                f"{where}: its {name} is {theirs}, and {ours} of {manifest.teacher_name}, the teacher of {cache.path}; "
                "name that teacher"
            )
    teacher: Config = found.to_dict()
    return teacher


def first_line(error: Exception) -> str:
    """What an error of transformers says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _named(name: str, cache: Cache, *, seed: int | None) -> CausalLMStudent:
    """A model by its Hub id or folder, with its own weights or, with `seed`, random ones."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = f"model.hf {name}"
    config, vocab_size = without_dropout(_config(name, where)), cache.manifest.vocab_size
    if getattr(config, "quantization_config", None):
        raise UserError(f"{where}: its weights are quantised, which training cannot change; name one that is not")
    if seed is None or _has_tokenizer(name):
        require_tokenizer(name, cache, where)
    try:
        if seed is not None:
            return build_causal_lm(config.to_dict(), vocab_size, seed=seed)
        model, found = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except UNREADABLE as error:
        hint = "; --model.hf_random true begins with random weights" if "no file named" in str(error) else ""
        raise UserError(f"{where}: cannot be loaded: {first_line(error)}{hint}") from error
    missing = sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])})
    if missing:
        raise UserError(f"{where}: its file lacks {missing[0]}, which would be random; name one that is whole")
    return CausalLMStudent(model, vocab_size)


def _config(name: str, where: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except UNREADABLE as error:
        raise UserError(f"{where}: cannot be loaded: {first_line(error)}") from error


def _has_tokenizer(name: str) -> bool:
    """Whether a model has a tokenizer: a folder with a configuration alone has none, and random weights need none."""
    return not Path(name).is_dir() or any(Path(name).glob("tokenizer*"))
