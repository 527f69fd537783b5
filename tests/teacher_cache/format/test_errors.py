import pytest

from delta_common.errors import UserError
from teacher_cache.format.errors import CacheCorruptError, CacheError, CacheFormatError, CacheUnfinishedError


@pytest.mark.parametrize("kind", [CacheFormatError, CacheUnfinishedError, CacheCorruptError])
def test_whoever_catches_user_errors_catches_every_error_of_a_cache(kind: type[CacheError]) -> None:
    with pytest.raises(UserError, match="what to do"):
        raise kind("what to do")
    assert issubclass(kind, CacheError)
    others = {CacheFormatError, CacheUnfinishedError, CacheCorruptError} - {kind}
    assert not any(issubclass(kind, other) for other in others)
