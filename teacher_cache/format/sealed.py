"""JSON with one spelling and a digest of itself."""

import json
from typing import Any, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """What is stored as JSON: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


RecordT = TypeVar("RecordT", bound=Record)


class SealError(ValueError):
    """Bytes that are no sealed record of the kind asked for; the message says why, and the caller says where."""


def digest(data: bytes | bytearray | memoryview) -> str:
    """xxh3-128 in hexadecimal: what commit records and the manifest name objects by."""
    return xxhash.xxh3_128_hexdigest(data)


def seal(record: Record) -> bytes:
    """The record as it is stored: JSON that ends with a digest of everything before it."""
    content = record.model_dump(mode="json")
    return json.dumps({**content, "digest": digest(canonical_json(content))}, indent=1).encode()


def parse_sealed(model: type[RecordT], data: bytes) -> RecordT:
    """The record that `seal` turned into `data`; raises `SealError` where `data` is anything else."""
    try:
        content = load_json(data)
        found = content.pop("digest", None) if isinstance(content, dict) else None
        record = model.model_validate(content)
    except ValueError as error:
        raise SealError("its JSON is malformed") from error
    if digest(canonical_json(record.model_dump(mode="json"))) != found:
        raise SealError("it does not match its own digest")
    return record


def load_json(data: bytes) -> Any:
    """A stored document; raises `ValueError` also where a number is not spelled as it was written.

    Doubles have several spellings of 17 digits: a digest of values would not notice one turning into another.
    """
    try:
        return json.loads(data, parse_float=_spelled_float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _spelled_float(text: str) -> float:
    value = float(text)
    if repr(value) != text:
        raise ValueError(f"{text} is spelled {value!r}")
    return value


def canonical_json(value: Any) -> bytes:
    """One spelling of a JSON value, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
