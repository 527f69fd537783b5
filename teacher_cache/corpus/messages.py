"""A conversation in a record of a corpus: its messages as chat templates take them, or what is wrong with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from delta_common.errors import UserError
from teacher_cache.settings import CorpusSettings

Json = Any
"""A value as JSON has it: templates take whatever a data set holds."""

Message = dict[str, Json]

OWN_NAMES = ("system", "developer", "user", "assistant", "tool")
"""Roles that templates know by this name."""

OTHER_NAMES = {
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation", "ipython"), "tool"),
}
"""Names that data sets give to roles, and those that templates know them by."""

SHAREGPT = {"from": "role", "value": "content"}
"""Keys of messages in the ShareGPT format, and what they are called here."""


@dataclass(frozen=True)
class Conversation:
    """One conversation: messages for a chat template, or a prompt and its completion as plain text."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Json, ...] | None = None
    first_answer: int = 0
    """Index of the first message whose answer may count: those of a prompt do not."""
    plain: tuple[str, str] | None = None
    """Prompt and completion where they are text; no template is used then."""
    fault: str | None = None
    """Why it gives no row, in a few words."""

    @property
    def answers(self) -> list[int]:
        """Indices of the assistant's messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]


@dataclass
class Skipped:
    """Conversations that give no row: how many for each reason, and the first of them."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count the conversation of this name."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, name)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def words(self) -> str:
        """How many and why, in one line; empty where there are none."""
        reasons = sorted(self.counts, key=lambda reason: -self.counts[reason])
        said = [f"{self.counts[reason]:,} {reason} (first: {self.first[reason]})" for reason in reasons]
        return f"{self.total:,} conversations give no row: {'; '.join(said)}" if said else ""


class _FaultError(Exception):
    """What is wrong with one conversation."""


def conversation_of(record: Mapping[str, object], settings: CorpusSettings, where: str) -> Conversation:
    """The conversation in a record, with its `fault` where it can give no row.

    Raises `UserError`, which begins with `where`, if a column holds something else than conversations.
    """
    if settings.messages_column is not None:
        parts = {settings.messages_column: record.get(settings.messages_column)}
    else:
        assert settings.prompt_column is not None
        assert settings.completion_column is not None
        parts = {name: record.get(name) for name in (settings.prompt_column, settings.completion_column)}
        if all(isinstance(part, str) for part in parts.values()):
            return _plain(*map(str, parts.values()))
    for name, part in parts.items():
        _require_list(name, part, settings, where)
    try:
        lists = [_messages(part) for part in parts.values()]
        messages = tuple(message for part in lists for message in part)
        first = len(lists[0]) if len(lists) > 1 else 0
        if not any(message["role"] == "assistant" for message in messages[first:]):
            raise _FaultError("without an assistant's turn")
        return Conversation(messages, _tools(record.get(settings.tools_column)), first)
    except _FaultError as fault:
        return Conversation(fault=str(fault))


def _plain(prompt: str, completion: str) -> Conversation:
    if not completion.strip():
        return Conversation(fault="with an empty completion")
    return Conversation(plain=(prompt, completion))


def _require_list(name: str, value: object, settings: CorpusSettings, where: str) -> None:
    """Raise `UserError` for a column of something else; a null is a conversation without messages."""
    if value is None or isinstance(value, list):
        return
    kind = "messages" if settings.messages_column is not None else "messages, or text in both columns"
    option = "messages_column" if settings.messages_column is not None else "prompt_column and completion_column"
    raise UserError(
        f"{where}: {name!r} is a {type(value).__name__}, not a list of {kind}; set corpus.{option} to what it has, or "
        "corpus.text_column for plain text"
    )


def _messages(value: object) -> list[Message]:
    """Messages as templates take them; nulls are dropped, as transformers does."""
    if not isinstance(value, list) or not value:
        raise _FaultError("without messages")
    return [_message(item) for item in value]


def _message(item: object) -> Message:
    if not isinstance(item, Mapping):
        raise _FaultError("with a message that is no object")
    names = {} if "role" in item else SHAREGPT
    message: Message = {str(names.get(key, key)): value for key, value in item.items() if value is not None}
    role = message.get("role")
    named = OTHER_NAMES.get(role, role) if isinstance(role, str) else None
    if named not in OWN_NAMES:
        raise _FaultError(f"with the role {role!r}" if role is not None else "with a message without a role")
    message["role"] = named
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise _FaultError("with tool calls that are no list")
        message["tool_calls"] = [_call(call) for call in calls]
    else:
        message.pop("tool_calls", None)
    message["content"] = _content(message.get("content"), allow_none=bool(calls))
    return message


def _content(content: object, *, allow_none: bool) -> str:
    """A message's text; parts of text are joined."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise _FaultError("with content that is not text")
        return "".join(map(str, texts))
    if content is None and not allow_none:
        raise _FaultError("with content that is null")
    if not isinstance(content, str | None):
        raise _FaultError("with content that is not text")
    return content or ""


def _call(call: object) -> object:
    """A tool call whose arguments are an object, as templates expect, where they are its JSON text."""
    if not isinstance(call, Mapping):
        raise _FaultError("with a tool call that is no object")
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _with_arguments(inner)}
    return _with_arguments(call)


def _with_arguments(call: Mapping[str, Json]) -> Message:
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return dict(call)
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return dict(call)
    return {**call, "arguments": parsed if isinstance(parsed, dict) else arguments}


def arguments_as_text(conversation: Conversation) -> Conversation:
    """The conversation with the arguments of tool calls as JSON text."""

    def as_text(call: Json) -> Json:
        inner = call.get("function")
        if isinstance(inner, Mapping):
            return {**call, "function": as_text(inner)}
        arguments = call.get("arguments")
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)} if isinstance(arguments, dict) else call

    messages = [
        {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=tuple(messages))


def _tools(value: object) -> tuple[Json, ...] | None:
    """The tools beside a conversation: a list of schemas, or its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise _FaultError("with tools that are not JSON") from None
    if value is None or value == []:
        return None
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise _FaultError("with tools that are no list of objects")
    return tuple(value)


def without_nulls(value: Json) -> Json:
    """The value without keys whose value is null: Parquet gives every message the keys of all of them."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value
