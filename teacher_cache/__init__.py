"""Run a teacher once over a corpus and keep, per token, what a student needs of it."""

from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.read.decode import CachedRows

__all__ = ["Cache", "CachedRows", "open_cache"]
