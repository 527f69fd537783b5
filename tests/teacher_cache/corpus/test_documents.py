"""A record becomes a document, or an error that names it."""

import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.documents import (
    BEGINNING,
    Document,
    columns_to_read,
    content_of,
    make_document,
    require_column,
)
from teacher_cache.settings import CorpusSettings

SETTINGS = CorpusSettings(source="x", text_column="body")


def made(text: object, name: object = None) -> Document:
    return make_document(text, name, SETTINGS, place="a.jsonl:3", where="folder/a.jsonl:3")


def test_a_document_is_named_by_its_record_or_its_place() -> None:
    assert made("text") == Document("a.jsonl:3", "text")
    assert made("text", 17) == Document("17", "text")
    assert made(None).text == made("").text == ""


@pytest.mark.parametrize("value", [3, ["a"], {"a": 1}, b"bytes"])
def test_what_is_no_text_is_named(value: object) -> None:
    with pytest.raises(UserError, match=rf"'body' of a.jsonl:3 is a {type(value).__name__}, not text; set corpus.text"):
        made(value)


def test_half_a_surrogate_pair_is_no_text_and_no_name() -> None:
    with pytest.raises(UserError, match="half a surrogate pair at character 2"):
        made("ab\udfffc")
    assert made("fine", "\ud800x").id == "?x"


def test_a_missing_column_names_those_there_are() -> None:
    require_column(SETTINGS, ["id", "body"], "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: no column 'body'; set corpus.text_column to one it has: id, text"):
        require_column(SETTINGS, ["id", "text"], "a.parquet")


def test_reading_begins_at_the_first_document() -> None:
    assert (BEGINNING.document, BEGINNING.file) == (0, 0)


CHATS = CorpusSettings(source="x", messages_column="talk")
PROMPTS = CorpusSettings(source="x", prompt_column="ask", completion_column="say")


def test_conversations_are_read_from_their_columns() -> None:
    assert columns_to_read(CHATS, ["text", "tools", "talk", "id"]) == ["talk", "id", "tools"]
    assert columns_to_read(PROMPTS, ["say", "ask"]) == ["ask", "say"]
    assert columns_to_read(SETTINGS, ["id", "body", "tools"]) == ["body", "id"]
    for settings, column, option in [(CHATS, "talk", "messages_column"), (PROMPTS, "say", "completion_column")]:
        with pytest.raises(UserError, match=rf"no column '{column}'; set corpus.{option} to one it has: ask, text"):
            require_column(settings, ["ask", "text"], "a.jsonl:1")


def test_a_conversation_becomes_a_document_and_half_a_surrogate_pair_none() -> None:
    record = {"talk": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    found = make_document(content_of(record, CHATS), None, CHATS, place="a.jsonl:3", where="folder/a.jsonl:3")
    assert found.id == "a.jsonl:3"
    assert found.conversation is not None
    assert found.conversation.fault is None
    record["talk"][0]["content"] = "\ud800"
    with pytest.raises(UserError, match=r"the conversation a\.jsonl:3 has half a surrogate pair"):
        make_document(content_of(record, CHATS), None, CHATS, place="a.jsonl:3", where="folder/a.jsonl:3")
