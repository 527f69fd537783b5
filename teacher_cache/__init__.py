"""Run a teacher once over a corpus and keep, per token, what a student needs of it."""

from teacher_cache.decode import CachedRows
from teacher_cache.reader import Cache, open_cache

__all__ = ["Cache", "CachedRows", "open_cache"]
