"""Run a teacher once over a corpus and keep, per token, what a student needs of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teacher_cache.read.cache import Cache, open_cache
    from teacher_cache.read.decode import CachedRows

__all__ = ["Cache", "CachedRows", "open_cache"]


def __getattr__(name: str) -> object:
    """The reader is imported where it is first asked for: it needs torch, and `teacher-cache --help` does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from teacher_cache.read import cache

    return getattr(cache, name)
