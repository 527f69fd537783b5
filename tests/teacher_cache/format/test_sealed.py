"""Sealed JSON: what is read is what was written, and any other bytes are refused."""

import json
import math

import pytest

from teacher_cache.format.sealed import Record, SealError, canonical_json, digest, load_json, parse_sealed, seal


class Note(Record):
    text: str
    share: float
    counts: dict[str, int]


NOTE = Note(text="δ and a surrogate \ud800", share=0.1 + 0.2, counts={"b": 2, "a": 1})


def test_a_sealed_record_reads_as_it_was() -> None:
    assert parse_sealed(Note, seal(NOTE)) == NOTE


def test_the_spelling_of_a_sealed_record_is_fixed() -> None:
    assert seal(Note(text="x", share=0.5, counts={})) == (
        b'{\n "text": "x",\n "share": 0.5,\n "counts": {},\n "digest": "fd58d4642f4bbe5e0a428c4228d11293"\n}'
    )


def test_every_changed_byte_is_noticed_or_changes_nothing() -> None:
    data = seal(Note(text="ab", share=0.75, counts={"a": 1}))
    for place in range(len(data)):
        for flip in (1, 2, 16, 128):
            changed = bytearray(data)
            changed[place] ^= flip
            try:
                found = parse_sealed(Note, bytes(changed))
            except SealError:
                continue
            assert found == Note(text="ab", share=0.75, counts={"a": 1})


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"\xff", b"[" * 10**6, b'{"text": "x", "share": 0.5, "further": 1, "digest": ""}']
)
def test_what_is_no_such_record_is_malformed(data: bytes) -> None:
    with pytest.raises(SealError, match="malformed"):
        parse_sealed(Note, data)


def test_a_record_without_its_digest_is_refused() -> None:
    content = json.loads(seal(NOTE))
    del content["digest"]
    with pytest.raises(SealError, match="does not match its own digest"):
        parse_sealed(Note, json.dumps(content).encode())


def test_equal_values_have_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_a_digest_is_xxh3_of_128_bits() -> None:
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"


def test_a_number_spelled_in_another_way_is_refused() -> None:
    assert load_json(b'{"a": 0.1, "b": 1e-07}') == {"a": 0.1, "b": 1e-7}
    assert math.isnan(load_json(b"NaN"))
    for spelling in (b"0.10", b"1.0e-7", b"0.1000000000000000055"):
        with pytest.raises(ValueError, match="is spelled"):
            load_json(spelling)


@pytest.mark.parametrize("absurd", [b"[" * 100_000, b"9" * 5_000, b"9" * 4_000])
def test_absurd_json_is_no_record(absurd: bytes) -> None:
    with pytest.raises(SealError, match="malformed"):
        parse_sealed(Record, b'{"digest": ' + absurd + b"}")
