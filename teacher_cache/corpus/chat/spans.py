"""Which characters of a rendered conversation the assistant speaks, and where others do.

A template with `{% generation %}` says so itself. Without, an answer begins where the template stops when it is asked
for one, and ends where the rendering of all messages up to it ends; both must be beginnings of the whole rendering.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from delta_common.errors import UserError
from teacher_cache.corpus.chat.template import ChatTemplate, RefusedError, Span
from teacher_cache.corpus.messages import Conversation, Json, Message, arguments_as_text

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that are in no text; those a conversation has not serve as marks in its messages."""
THOUGHT = "</think>"
"""Behind it stands what templates keep of an answer that begins with a thought."""


USUAL = tuple({"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, "abcd", strict=True))
"""A conversation that every template takes."""


class UnclearError(RefusedError):
    """A rendering does not show which of its characters are an answer."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and spans of its characters."""

    text: str
    answers: tuple[Span, ...]
    """What the assistant speaks, each up to and including the token that ends its turn."""
    counted: tuple[Span, ...]
    """Those of `answers` that may count: a prompt's may not."""
    last: tuple[Span, ...]
    """Those of the last answer."""
    words: tuple[tuple[Span, str], ...]
    """What others say, and who."""
    ends: tuple[int, ...]
    """Where a conversation may be cut: behind each answer and the white space after it."""
    stops: bool
    """Whether a special token ends the last answer, by which a student learns to stop."""
    quoted: tuple[Span, ...] = ()
    """Names of special tokens inside messages, which are their letters."""


def render_conversation(template: ChatTemplate, conversation: Conversation, *, special_as_text: bool) -> Rendered:
    """The conversation rendered, and who says what.

    With `special_as_text` names of special tokens inside messages are no such tokens. Raises `RefusedError` if the
    template does not take the conversation, and `UnclearError` if it does not show where answers begin and end.
    """
    if conversation.plain is not None:
        return _plain(template, conversation.plain, special_as_text=special_as_text)
    try:
        return _rendered(template, conversation, special_as_text=special_as_text)
    except RefusedError:
        as_text = arguments_as_text(conversation)  # as some templates take them
        if as_text == conversation:
            raise
        return _rendered(template, as_text, special_as_text=special_as_text)


def _rendered(template: ChatTemplate, conversation: Conversation, *, special_as_text: bool) -> Rendered:
    marks = _Marks.absent_from(conversation)
    if special_as_text:
        conversation = marks.quote(conversation, template.special)
    turns = _Turns(template, conversation, marks)
    if template.has_markers:
        answers, counted, last = turns.marked()
    else:
        answers = turns.answers()
        counted = answers[sum(index < conversation.first_answer for index in conversation.answers) :]
        last = answers[-1:]
        turns.require_spoken(answers)
    words = turns.words()
    if any(answer[0] < end and start < answer[1] for answer in answers for (start, end), _ in words):
        raise UnclearError("it marks what others say as an answer")
    ends = tuple(turns.end_of_turn(end) for _, end in answers)
    stops = any(_stop(turns.whole[start:end], template.special) is not None for start, end in last[-1:])
    found = Rendered(turns.whole, tuple(answers), tuple(counted), tuple(last), tuple(words), ends, stops)
    return marks.unquote(found, template.special)


def require_answers_shown(template: ChatTemplate) -> None:
    """Raise `UserError` if the template does not even show the answers of a usual conversation."""
    try:
        render_conversation(template, Conversation(USUAL), special_as_text=True)
    except UnclearError as error:
        raise UserError(
            f"{template.name}: {error}, so it is not known which tokens count; give as corpus.chat_template a file in "
            "which {% generation %} encloses answers"
        ) from error
    except RefusedError:
        return


def _plain(template: ChatTemplate, plain: tuple[str, str], *, special_as_text: bool) -> Rendered:
    text, border = "".join(plain), len(plain[0])
    quoted = tuple(found.span() for found in template.special.finditer(text)) if special_as_text else ()
    answer = ((border, len(text)),)
    return Rendered(text, answer, answer, answer, (((0, border), "user"),), (len(text),), True, quoted)


@dataclass(frozen=True)
class _Marks:
    """Four characters that a conversation has not."""

    quote_mark: str
    opens: str
    closes: str
    filler: str

    @classmethod
    def absent_from(cls, conversation: Conversation) -> "_Marks":
        text = json.dumps([conversation.messages, conversation.tools], ensure_ascii=False, default=str)
        return cls(*[mark for mark in NONCHARACTERS if mark not in text][:4])

    def quote(self, conversation: Conversation, special: re.Pattern[str]) -> Conversation:
        """The conversation with a mark behind the first character of each special token's name in it."""

        def quoted(value: Json) -> Json:
            if isinstance(value, str):
                return special.sub(lambda found: found[0][0] + self.quote_mark + found[0][1:], value)
            if isinstance(value, list | tuple):
                return [quoted(item) for item in value]
            if isinstance(value, Mapping):
                return {key: item if key == "role" else quoted(item) for key, item in value.items()}
            return value

        tools = None if conversation.tools is None else tuple(quoted(conversation.tools))
        return replace(conversation, messages=tuple(quoted(conversation.messages)), tools=tools)

    def unquote(self, found: Rendered, special: re.Pattern[str]) -> Rendered:
        """What was rendered, without the marks; the names at them are `quoted`."""
        places = [at for at, character in enumerate(found.text) if character == self.quote_mark]
        if not places:
            return found
        text = found.text.replace(self.quote_mark, "")

        def moved(at: int) -> int:
            return at - sum(place < at for place in places)

        def span(given: Span) -> Span:
            return moved(given[0]), moved(given[1])

        names = [special.match(text, moved(place) - 1) for place in places]
        return Rendered(
            text,
            answers=tuple(map(span, found.answers)),
            counted=tuple(map(span, found.counted)),
            last=tuple(map(span, found.last)),
            words=tuple((span(words), role) for words, role in found.words),
            ends=tuple(map(moved, found.ends)),
            stops=found.stops,
            quoted=tuple(name.span() for name in names if name is not None),
        )

    def fill(self, message: Message) -> Message:
        return {**message, "content": self.filler}

    def enclose(self, message: Message) -> Message:
        """The message with marks around its words, inside of white space that a template may strip."""
        words = message["content"].strip()
        if message["role"] == "assistant" or not words:
            return message
        before, _, after = message["content"].partition(words)
        return {**message, "content": f"{before}{self.opens}{words}{self.closes}{after}"}


@dataclass(frozen=True)
class _Habits:
    """What a template does around the answer to a short question."""

    opens: bool = True
    """Whether it begins the answer when it is asked for one."""
    stop: str | None = None
    """The special token that it ends an answer with."""


class _Turns:
    """A conversation rendered whole and in parts."""

    def __init__(self, template: ChatTemplate, conversation: Conversation, marks: _Marks) -> None:
        self._template, self._marks = template, marks
        self._messages, self._tools = conversation.messages, conversation.tools
        self._conversation = conversation
        self.whole = template.render(self._messages, self._tools)

    def marked(self) -> tuple[list[Span], list[Span], list[Span]]:
        """All that the template's markers enclose; of it what may count, and what belongs to the last answer."""
        whole, spans = self._template.render_marked(self._conversation)
        spans = [span for span in spans if span[0] < span[1]]
        if whole != self.whole:
            raise UnclearError("it renders differently when it is asked for its markers")
        borders = (self._conversation.first_answer, self._conversation.answers[-1])
        before = [self._marked_before(index, spans) for index in borders]
        return spans, spans[before[0] :], spans[before[1] :]

    def _marked_before(self, index: int, spans: list[Span]) -> int:
        """How many of the spans belong to the messages before this one."""
        if not any(message["role"] == "assistant" for message in self._messages[:index]):
            return 0
        earlier = self._template.render_marked(replace(self._conversation, messages=self._messages[:index]))[1]
        earlier = [span for span in earlier if span[0] < span[1]]
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(earlier, spans, strict=False))))

    def require_spoken(self, answers: Sequence[Span]) -> None:
        """Raise `RefusedError` if the template leaves out what the assistant says."""
        for index, (start, end) in zip(self._conversation.answers, answers, strict=True):
            if self._spoken(index) not in self.whole[start:end]:
                raise RefusedError("it leaves out an answer")

    def answers(self) -> list[Span]:
        """The span of each answer, from differences of what parts of the conversation render to."""
        found: list[Span] = []
        for index in self._conversation.answers:
            start = self._start(index, found[-1][1] if found else 0)
            found.append((start, self._end(index, start)))
        return found

    def _start(self, index: int, after: int) -> int:
        """Where the answer begins: where the template stops when it is asked for one.

        Some begin an answer otherwise when they ask for it, as with a thought that they leave out of what is past; then
        it begins where another text in its place would.
        """
        begun, unasked = (self._try(self._messages[:index], ask=ask) for ask in (True, False))
        asked = self._beginning(begun, after)
        others = [*self._messages[:index], self._marks.fill(self._messages[index]), *self._messages[index + 1 :]]
        filled, mark, _ = (self._try(others) or "").partition(self._marks.filler)
        before_words = self._beginning(filled if mark else None, after)
        if before_words is None:
            start = asked if self._habits.opens else None
        elif asked is None or begun == unasked or self._template.special.search(self.whole, asked, before_words):
            start = before_words
        else:
            start = asked
        if start is None:
            raise UnclearError("it renders the beginning of a conversation otherwise than the whole")
        return start

    def _end(self, index: int, start: int) -> int:
        """Behind the special token that ends the turn, or behind the answer where there is none."""
        so_far = self._try(self._messages[: index + 1])
        end = self._beginning(so_far, start + 1)
        if end is not None:
            return start + len(_with_stop(self.whole[start:end], self._template.special))
        stop = _stop(so_far or "", self._template.special) or self._habits.stop
        at = -1 if stop is None else self.whole.find(stop, start)
        if stop is None or at < 0 or self._spoken(index) not in self.whole[start:at]:
            raise UnclearError("it renders an answer otherwise when more follows it")
        return at + len(stop)

    def end_of_turn(self, end: int) -> int:
        """Behind the white space that follows the answer, and its special token where markers leave it out."""
        left_out = self._template.has_markers and _stop(self.whole[:end], self._template.special) is None
        rest = re.compile(rf"(?:{self._template.special.pattern})?\s*" if left_out else r"\s*")
        found = rest.match(self.whole, end)
        return end if found is None else found.end()

    def words(self) -> list[tuple[Span, str]]:
        """What others than the assistant say, with their roles; nothing where the template changes their words."""
        enclosed = self._try([self._marks.enclose(message) for message in self._messages]) or ""
        opens, closes = self._marks.opens, self._marks.closes
        pieces = re.split(f"[{opens}{closes}]", enclosed)
        roles = [m["role"] for m in self._messages if m["role"] != "assistant" and m["content"].strip()]
        if "".join(pieces) != self.whole or len(pieces) != 2 * len(roles) + 1:
            return []
        borders = [0]
        for piece in pieces:
            borders.append(borders[-1] + len(piece))
        spans = [(borders[1 + 2 * n], borders[2 + 2 * n]) for n in range(len(roles))]
        return [(span, _ROLE_CODES.get(role, role)) for span, role in zip(spans, roles, strict=True)]

    @property
    def _habits(self) -> _Habits:
        question: list[Message] = [{"role": "user", "content": "a"}]
        asked = self._try(question, ask=True)
        answered = self._try([*question, {"role": "assistant", "content": self._marks.filler}])
        if asked is None or answered is None or self._marks.filler not in answered:
            return _Habits()
        before = answered.partition(self._marks.filler)[0]
        opens = not self._template.special.search(before, min(len(asked), len(before)))
        return _Habits(opens, _stop(answered, self._template.special))

    def _spoken(self, index: int) -> str:
        """Words that must be in an answer: its last ones, or the name of the tool that it calls."""
        message = self._messages[index]
        spoken: str = message["content"].rpartition(THOUGHT)[2].strip()
        if spoken or not isinstance(message.get("tool_calls"), list):
            return spoken
        call = message["tool_calls"][0]
        return str(call.get("function", call).get("name", ""))

    def _beginning(self, text: str | None, least: int) -> int | None:
        """The length of a text that the whole begins with, if it is one and not shorter than `least`."""
        return len(text) if text is not None and len(text) >= least and self.whole.startswith(text) else None

    def _try(self, messages: Sequence[Message], *, ask: bool = False) -> str | None:
        try:
            return self._template.render(messages, self._tools, ask=ask)
        except RefusedError:
            return None


_ROLE_CODES = {"developer": "system"}


def _with_stop(answer: str, special: re.Pattern[str]) -> str:
    """An answer up to and with the special tokens that end it, without white space behind; all of it if none do."""
    stripped, run = answer.rstrip(), _run_at_end(answer, special)
    return stripped if run is None else answer[: run[1]]


def _stop(text: str, special: re.Pattern[str]) -> str | None:
    """The special token that ends a text, None if it ends with words."""
    run = _run_at_end(text, special)
    if run is None:
        return None
    return [found[0] for found in special.finditer(text, *run)][-1]


def _run_at_end(text: str, special: re.Pattern[str]) -> Span | None:
    """The first run of special tokens, without white space between, of those that only white space follows."""
    spans = [found.span() for found in special.finditer(text)]
    run: Span | None = None
    following = len(text)
    for start, end in reversed(spans):
        if text[end:following].strip():
            break
        run = (start, run[1]) if run is not None and end == following else (start, end)
        following = start
    return run
