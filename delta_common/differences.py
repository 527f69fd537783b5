"""What differs between two nested values of settings, key by key."""

from collections.abc import Iterator, Mapping
from typing import Any


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(section.key, value found, value wanted) wherever they differ, in the order of the keys; None where unset."""
    before, now = flatten(found), flatten(wanted)
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
