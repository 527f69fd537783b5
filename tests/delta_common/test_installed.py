"""Whether Triton is there is asked of the import system, once, without importing it."""

import importlib.util
from collections.abc import Iterator

import pytest

from delta_common.installed import has_triton


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    has_triton.cache_clear()
    yield
    has_triton.cache_clear()


@pytest.mark.parametrize(("found", "is_there"), [(None, False), (object(), True)])
def test_triton_is_looked_for_once(found: object, is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> object:
        asked.append(name)
        return found

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert has_triton() is is_there
    assert has_triton() is is_there
    assert asked == ["triton"]
