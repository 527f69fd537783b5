"""The caches of held-out text that a run is measured on."""

from collections.abc import Sequence

from delta_common.errors import UserError
from student.evaluate.positions import require_temperature_one
from teacher_cache.read.cache import Cache, open_cache


def open_held_out(paths: Sequence[str], trained_on: Sequence[Cache]) -> tuple[Cache, ...]:
    """Caches of held-out text.

    Raises `UserError` for one of another tokenizer or context than those trained on, or of a teacher that is none of
    theirs.
    """
    held_out: list[Cache] = []
    for path in paths:
        cache = open_cache(path)
        _require_comparable(path, cache, trained_on)
        if any(cache.fingerprint == other.fingerprint for other in held_out):
            raise UserError(f"evaluation.caches: {path} is there twice; name each cache once")
        held_out.append(cache)
    return tuple(held_out)


def _require_comparable(path: str, cache: Cache, trained_on: Sequence[Cache]) -> None:
    theirs, ours = cache.manifest, trained_on[0].manifest
    same = {
        "tokenizer": ours.tokenizer_sha256 == theirs.tokenizer_sha256,
        "teacher": any(each.manifest.teacher.weights_sha256 == theirs.teacher.weights_sha256 for each in trained_on),
        "transform of the logits": ours.teacher.logit_transform == theirs.teacher.logit_transform,
        "rows.context": ours.rows.context == theirs.rows.context,
    }
    for name, is_same in same.items():
        if not is_same:
            known = " and ".join(str(each.path) for each in trained_on)
            raise UserError(f"evaluation.cache {path}: another {name} than {known}; build both with the same")
    require_temperature_one(cache, "evaluation.cache")
