"""Text in pieces is the text at once, whatever bytes the tokens stand for."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from student.inference.text_stream import MOST_PENDING, UNFINISHED, TextStream
from tests.helpers.tokenizers_for_tests import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=12)))
@settings(max_examples=200, deadline=None)
def test_text_in_pieces_is_the_text_at_once(data: bytes) -> None:
    tokenizer = TOKENIZER
    tokens = _tokens_of_bytes(tokenizer, data)
    assert UNFINISHED in tokenizer.decode(tokens) or tokenizer.decode(tokens).encode() == data
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokens] + [stream.finish()]
    # What is no character is cut somewhere, lest it pile up.
    if len(tokens) < MOST_PENDING or (_is_text(data) and UNFINISHED not in data.decode()):
        assert "".join(pieces) == tokenizer.decode(tokens)


def _tokens_of_bytes(tokenizer: Any, data: bytes) -> list[int]:
    """By the letters that GPT-2 writes bytes in: printable ones as they are, the others from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in data]
    return [tokenizer.convert_tokens_to_ids(letter) for letter in letters]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_stream_keeps_few_tokens_back() -> None:
    """Bytes that never become a character must not pile up."""
    stream = TextStream(TOKENIZER)
    most = 0
    for _ in range(200):
        stream.add(_tokens_of_bytes(TOKENIZER, b"\xf0")[0])
        most = max(most, len(stream._pending))
    assert most < MOST_PENDING
