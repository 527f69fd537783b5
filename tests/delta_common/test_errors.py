"""One family of errors for all that a user can remedy; each is a builtin error too."""

import pytest

from delta_common.errors import UserError
from teacher_cache.format.errors import CacheCorruptError, CacheError, CacheFormatError


@pytest.mark.parametrize("error", [UserError, CacheError, CacheFormatError, CacheCorruptError])
def test_what_a_user_can_remedy_is_caught_as_one_kind(error: type[Exception]) -> None:
    assert issubclass(error, UserError)
    assert issubclass(error, ValueError)
