"""Ways in which a bookmark's bytes can be wrong, by name."""

import json
from collections.abc import Callable
from typing import Any

from teacher_cache.format.sealed import canonical_json, digest


def reseal(data: bytes, **changed: Any) -> bytes:
    """The record with some keys changed and a digest that is right again."""
    content = {**json.loads(data), **changed}
    del content["digest"]
    return json.dumps({**content, "digest": digest(canonical_json(content))}).encode()


def moved(data: bytes, **changed: Any) -> bytes:
    """The bookmark with another cursor."""
    return reseal(data, place={**json.loads(data)["place"], **changed})


UNSOUND: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "cut short": lambda data: data[:-9],
    "no JSON": lambda data: b"\xff" + data,
    "a list": lambda data: b"[]",
    "nested": lambda data: b"[" * 10_000,
    "a number changed": lambda data: data.replace(b'"used": ', b'"used": 1'),
    "an unknown key": lambda data: reseal(data, more=1),
    "of another row": lambda data: reseal(data, row=4),
    "of another corpus": lambda data: reseal(data, basis="0" * 64),
    "a negative number": lambda data: reseal(data, used=-1),
    "a negative file": lambda data: moved(data, file=-1),
}


"""Damage that shows in the bytes alone."""

MISLEADING: dict[str, Callable[[bytes], bytes]] = {
    "behind all tokens": lambda data: reseal(data, used=10_000),
    "another document": lambda data: moved(data, item=json.loads(data)["place"]["item"] + 1),
    "another file": lambda data: moved(data, file=0),
    "no such file": lambda data: moved(data, file=10**9),
    "no such row": lambda data: moved(data, item=10**9),
    "other tokens": lambda data: reseal(data, tokens="0" * 32),
}
"""What only the corpus itself can show to be false."""
