"""The caches of a run: opened, held to one another, and held to what the settings ask of them."""

from collections.abc import Sequence
from pathlib import Path

from delta_common.errors import UserError
from student.loss.settings import DistillationSettings
from student.run.stages import Stage
from student.settings import TargetViewSettings, TrainSettings
from teacher_cache.format.keys import FROZEN_WEIGHTS_KEY
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.nodes import interpolation_weights
from teacher_cache.read.cache import Cache, open_cache


def open_caches(settings: TrainSettings, path: str | Path | None) -> tuple[Cache, ...]:
    """The caches that the settings list, or the one at `path`.

    Raises `UserError` naming both where one does not fit the first: embedding, LM head, tokenizer and rows of one
    length and context are what a student has only once.
    """
    caches = tuple(open_cache(cache.path) for cache in settings.caches) if path is None else (open_cache(path),)
    for number, cache in enumerate(caches):
        for other in caches[:number]:
            if other.fingerprint == cache.fingerprint:
                raise UserError(
                    f"{cache.path}: the same cache as {other.path}; give it once, with both shares together"
                )
        _require_agreement(cache, caches[0])
    return caches


def _require_agreement(cache: Cache, first: Cache) -> None:
    ours, theirs = (_what_agrees(each.manifest) for each in (cache, first))
    for name in ours:
        if ours[name] != theirs[name]:
            said = f" ({ours[name]}, and {theirs[name]})" if len(str(ours[name])) < 16 else ""
            raise UserError(
                f"{cache.path}: another {name} than {first.path} has{said}; caches that are trained on together must "
                "have the same"
            )


def _what_agrees(manifest: Manifest) -> dict[str, object]:
    return {
        "vocabulary": manifest.vocab_size,
        "tokenizer": manifest.tokenizer_sha256,
        "hidden size": manifest.hidden_size,
        "embedding or LM head": manifest.files[FROZEN_WEIGHTS_KEY],
        "scale of the embedding": manifest.teacher.embedding_scale,
        "transform of the logits": manifest.teacher.logit_transform,
        "rows.seq_len": manifest.seq_len,
        "rows.context": manifest.rows.context,
    }


def view(cache: Cache, targets: TargetViewSettings) -> Cache:
    """The cache, or a view of as many of its targets as the settings say."""
    if targets.top_k is None and targets.samples is None:
        return cache
    try:
        return cache.view(top_k=targets.top_k, samples=targets.samples)
    except UserError as error:
        raise UserError(f"{cache.path}: {error}") from error


def shares_of(settings: TrainSettings, caches: Sequence[Cache]) -> list[float]:
    """Shares of the rows, relative to one another: as the settings say, or as many as each cache has."""
    said = [cache.share for cache in settings.caches]
    return [share or len(cache) for share, cache in zip(said or [None] * len(caches), caches, strict=True)]


def distillations(settings: TrainSettings, caches: Sequence[Cache]) -> tuple[DistillationSettings, ...]:
    """Settings of the loss by cache, in a stage; one of several without averaged states has no Frobenius term."""
    return tuple(
        wanted.without_frobenius() if len(caches) > 1 and cache.manifest.hidden.mean == "none" else wanted
        for wanted, cache in ((settings.distillation_of(number), cache) for number, cache in enumerate(caches))
    )


def require_fit(settings: TrainSettings, stage: Stage, caches: Sequence[Cache]) -> None:
    """Raise `UserError` unless the caches have what a stage's loss needs; `settings` are those of the stage."""
    if stage.settings.loss == "transfer":
        return
    of_stage = f"stages.{stage.number - 1}." if stage.settings.distillation is not None else ""
    sharing = [number for number, _ in enumerate(caches) if not _has_own(settings, number)]
    some_have = any(caches[number].manifest.hidden.mean != "none" for number in sharing)
    for number, cache in enumerate(caches):
        own = _has_own(settings, number)
        where = f"caches.{number}.distillation" if own else f"{of_stage}distillation"
        wanted = settings.distillation_of(number)
        _require_temperatures(cache, wanted, where, "" if own or len(caches) == 1 else _of_its_own(number))
        may_do_without = cache.manifest.hidden.mean == "none" and some_have and not own
        if wanted.frobenius.enabled and not may_do_without:
            _require_states(cache, f"{where}.frobenius")


def _has_own(settings: TrainSettings, number: int) -> bool:
    return bool(settings.caches) and settings.caches[number].distillation is not None


def _of_its_own(number: int) -> str:
    return f"give the cache settings of its own (caches.{number}.distillation), "


def _require_states(cache: Cache, where: str) -> None:
    """Raise `UserError` unless a row of the cache has enough of the averaged states for the Frobenius term."""
    hidden, width = cache.manifest.hidden, cache.manifest.hidden_size
    remedy = f"set {where}.weight_init and weight_final to 0, or build the cache with"
    if hidden.mean == "none":
        raise UserError(f"{cache.path}: no averaged hidden states, which {where} needs; {remedy} hidden.preset default")
    kept = hidden.positions(cache.manifest.seq_len) * hidden.width(width)
    if kept < width:
        raise UserError(
            f"{cache.path}: a row keeps {kept} numbers of its averaged hidden states, too few for {where} to estimate "
            f"{width} channels from; {remedy} more hidden.channels or a smaller hidden.stride"
        )


def _require_temperatures(cache: Cache, distillation: DistillationSettings, where: str, or_own: str) -> None:
    """The temperature falls while training; check both ends of its range before training begins."""
    if cache.layout.mode == "exact":
        return
    for name in ("temperature_init", "temperature_final"):
        try:
            interpolation_weights(cache.layout.node_temperatures, getattr(distillation, name))
        except UserError as error:
            remedy = f"set it inside, {or_own}or build a cache with other targets.temperatures"
            raise UserError(f"{where}.{name}: {error} of {cache.path}; {remedy}") from error
