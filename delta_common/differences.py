"""How two nested mappings differ, key by key."""

from collections.abc import Iterator, Mapping


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    """(section.key, value found, value wanted) of every key that differs, in order; None where a key is missing."""
    before, now = flatten(found), flatten(wanted)
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def flatten(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested values by dotted keys; lists stay whole."""
    flat: dict[str, object] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
