"""The errors a cache can cause: one family, each with a remedy in its message."""

from delta_common.errors import UserError

REPAIR = "teacher-cache repair rebuilds what is damaged"


class CacheError(UserError):
    """A cache that cannot be used as asked."""


class CacheFormatError(CacheError):
    """Not a cache, or one in a format version that this package does not know."""


class CacheUnfinishedError(CacheError):
    """A cache whose build has not finished all shards."""


class CacheCorruptError(CacheError):
    """A cache whose bytes differ from those that were written."""
