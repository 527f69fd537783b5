"""What can be wrong with a cache: one family of errors."""

from delta_common.errors import UserError

REPAIR = "teacher-cache repair rebuilds what is damaged"


class CacheError(UserError):
    """A cache that cannot be used as asked."""


class CacheFormatError(CacheError):
    """No cache, or one of a format this version does not know."""


class CacheUnfinishedError(CacheError):
    """A cache whose build has shards left to do."""


class CacheCorruptError(CacheError):
    """A cache whose bytes are not those that were written."""
