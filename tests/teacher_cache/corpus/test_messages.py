"""Conversations in records: the formats that data sets have, and what gives no row."""

import json

import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.messages import Conversation, Skipped, arguments_as_text, conversation_of, without_nulls
from teacher_cache.settings import CorpusSettings

MESSAGES = CorpusSettings(source="x", messages_column="messages")
PROMPTS = CorpusSettings(source="x", prompt_column="prompt", completion_column="completion")
HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def read(messages: object, **more: object) -> Conversation:
    return conversation_of({"messages": messages, **more}, MESSAGES, "a.jsonl:3")


def test_messages_are_taken_as_they_are() -> None:
    assert read(HI) == Conversation(tuple(HI))
    assert read(HI).answers == [1]


def test_sharegpt_and_other_names_of_roles_are_understood() -> None:
    assert read([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]) == read(HI)
    assert read([{"role": "human", "content": "hi"}, {"role": "model", "content": "ho"}]) == read(HI)


def test_tool_calls_may_have_their_arguments_as_text_and_no_content() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    messages = [HI[0], {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "7"}]
    found = read(messages, tools=json.dumps([{"name": "f"}]))
    assert found.messages[1]["content"] == ""
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert found.tools == ({"name": "f"},)
    as_text = arguments_as_text(found)
    assert as_text.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
    assert arguments_as_text(read(HI)) == read(HI)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert read([{"role": "user", "content": parts}, HI[1]]) == read(HI)


def test_of_a_prompt_and_a_completion_only_the_latter_counts() -> None:
    found = conversation_of({"prompt": [HI[0]], "completion": [HI[1]]}, PROMPTS, "a")
    assert (found.messages, found.first_answer) == (tuple(HI), 1)
    assert conversation_of({"prompt": "2 + 2 =", "completion": " 4"}, PROMPTS, "a").plain == ("2 + 2 =", " 4")
    assert conversation_of({"prompt": HI, "completion": [HI[0]]}, PROMPTS, "a").fault == "without an assistant's turn"


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "without messages"),
        (None, "without messages"),
        ([HI[0]], "without an assistant's turn"),
        ([HI[0], {"role": "narrator", "content": "x"}], "with the role 'narrator'"),
        ([HI[0], {"content": "x"}], "with a message without a role"),
        ([HI[0], {"role": "assistant", "content": None}], "with content that is null"),
        ([HI[0], {"role": "assistant"}], "with content that is null"),
        ([HI[0], {"role": "assistant", "content": 7}], "with content that is not text"),
        ([{"role": "user", "content": [{"type": "image"}]}, HI[1]], "with content that is not text"),
        (["hi"], "with a message that is no object"),
        ([HI[0], {"role": "assistant", "content": "", "tool_calls": "f()"}], "with tool calls that are no list"),
        ([HI[0], {"role": "assistant", "content": "", "tool_calls": ["f()"]}], "with a tool call that is no object"),
    ],
)
def test_what_gives_no_row_says_why(messages: object, fault: str) -> None:
    assert read(messages).fault == fault


def test_tools_must_be_schemas() -> None:
    assert read(HI, tools="{").fault == "with tools that are not JSON"
    assert read(HI, tools=["f"]).fault == "with tools that are no list of objects"
    assert read(HI, tools="").tools is read(HI, tools=[]).tools is None
    assert conversation_of({"prompt": "a", "completion": " "}, PROMPTS, "a").fault == "with an empty completion"


def test_a_column_of_something_else_is_named() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:3: 'messages' is a str, not a list of messages; set corpus.messages"):
        read("User: hi")
    with pytest.raises(UserError, match=r"'prompt' is a str, not a list of messages, or text in both columns"):
        conversation_of({"prompt": "hi", "completion": [HI[1]]}, PROMPTS, "a")


def test_what_is_skipped_is_counted_by_reason() -> None:
    skipped = Skipped()
    assert skipped.words() == ""
    for reason, name in [("a", "x:1"), ("b", "x:2"), ("b", "x:3")]:
        skipped.add(reason, name)
    assert skipped.words() == "3 conversations give no row: 2 b (first: x:2); 1 a (first: x:1)"
    assert skipped.total == 3


def test_the_nulls_that_parquet_fills_in_are_dropped() -> None:
    assert without_nulls([{"role": "user", "tool_calls": None, "x": {"a": None, "b": 1}}]) == [
        {"role": "user", "x": {"b": 1}}
    ]
