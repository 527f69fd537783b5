"""Records stored as JSON with a digest of themselves, so that any damage is noticed."""

import json
from typing import TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict

from delta_common.files import parse_json


class Record(BaseModel):
    """A record that is stored as JSON: immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


RecordT = TypeVar("RecordT", bound=Record)


class SealError(ValueError):
    """Bytes that are not a sealed record of the model asked for; the message says why, the caller adds where."""


def digest(data: bytes | bytearray | memoryview) -> str:
    """xxh3-128 in hexadecimal, as commit records and the manifest list it for each object."""
    return xxhash.xxh3_128_hexdigest(data)


def seal(record: Record) -> bytes:
    """The record as it is stored: its JSON with one more key, `digest`, of the rest as canonical JSON."""
    content = record.model_dump(mode="json")
    return json.dumps({**content, "digest": digest(canonical_json(content))}, indent=1).encode()


def parse_sealed(model: type[RecordT], data: bytes) -> RecordT:
    """The record sealed in `data`; raises `SealError` where `data` is not what `seal` writes for a `model`."""
    try:
        content = load_json(data)
        found = content.pop("digest", None) if isinstance(content, dict) else None
        record = model.model_validate(content)
    except ValueError as error:
        raise SealError("its JSON is malformed") from error
    if digest(canonical_json(record.model_dump(mode="json"))) != found:
        raise SealError("it does not match its own digest")
    return record


def load_json(data: bytes) -> object:
    """Parse stored JSON; raises `ValueError` also where a float is not spelled as Python writes it.

    A double has several decimal spellings. Digests are taken of values, so without this check a flipped bit that turns
    one spelling into another would go unnoticed.
    """
    return parse_json(data, parse_float=_spelled_float)


def _spelled_float(text: str) -> float:
    value = float(text)
    if repr(value) != text:
        raise ValueError(f"{text} is spelled {value!r}")
    return value


def canonical_json(value: object) -> bytes:
    """The canonical spelling of a JSON value: equal values have equal bytes, and so equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
