"""A chat template: where it comes from, its digest, and conversations rendered with it."""

import hashlib
import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from delta_common.errors import UserError
from delta_common.files import expand_home
from teacher_cache.corpus.messages import Conversation, Json, Message
from teacher_cache.format.sealed import canonical_json
from teacher_cache.settings import CorpusSettings

MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
FIXED_DATE = date(2024, 7, 26)
"""What templates that ask for today's date are given, so that rows do not change from one day to the next."""

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What templates raise over conversations that they do not take."""

Span = tuple[int, int]


class RefusedError(Exception):
    """The template does not take this conversation; the message says why."""


class ChatTemplate:
    """A tokenizer's chat template. `name` says which, for messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer, self.name = tokenizer, name
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        longest_first = sorted((token for token in special if token.strip()), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        """Finds the names of special tokens in a text."""

    def text_for(self, tools: Sequence[Json] | None) -> str:
        """The template that serves these tools: a tokenizer may have several."""
        found = self._tokenizer.get_chat_template(tools=tools)
        return TODAY.sub(lambda call: repr(FIXED_DATE.strftime(call[2])), found)

    @cached_property
    def has_markers(self) -> bool:
        """Whether it says itself, by `{% generation %}`, what the assistant generates."""
        return MARKERS.search(self.text_for(None)) is not None

    def render(self, messages: Sequence[Message], tools: Sequence[Json] | None = None, *, ask: bool = False) -> str:
        """The conversation as text; with `ask` followed by what begins an answer. Raises `RefusedError`."""
        return self._rendered(messages, tools, add_generation_prompt=ask)[0]

    def render_marked(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The conversation as text, and the spans of characters that the template's markers name. As `render`."""
        return self._rendered(conversation.messages, conversation.tools, return_assistant_tokens_mask=True)

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Json] | None, **options: bool
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=None if tools is None else list(tools),
                chat_template=self.text_for(tools),
                **options,
                **self._tokenizer.special_tokens_map,
            )
        except REFUSALS as error:
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RefusedError(said) from error
        return texts[0], spans[0] if spans else []


def use_template(tokenizer: PreTrainedTokenizerBase, settings: CorpusSettings) -> None:
    """Give the tokenizer the template of `corpus.chat_template`, if it is set: the cache carries it from then on.

    Raises `UserError` if the file cannot be read, or conversations in messages have no template.
    """
    if not settings.has_conversations:
        return
    if settings.chat_template is not None:
        tokenizer.chat_template = read_template(settings.chat_template)
    elif tokenizer.chat_template is None and settings.messages_column is not None:
        raise UserError(
            "corpus.chat_template: the teacher's tokenizer has no chat template; set it to a file with the Jinja "
            "template that the teacher was trained with"
        )


def read_template(path: str) -> str:
    """The template in a file. Raises `UserError` naming it if that is none."""
    try:
        text = expand_home(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus.chat_template {path}: cannot be read ({error}); check the path") from error
    try:
        render_jinja_template(conversations=[[{"role": "user", "content": "a"}]], chat_template=text)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        if line is not None:  # one that raises over the conversation has no line
            raise UserError(f"corpus.chat_template {path}: line {line}: {error.message}; mend the template") from error
    except REFUSALS:  # it asks for more than this conversation has, which it may
        pass
    return text


def template_digest(template: object) -> str | None:
    """sha256 of a tokenizer's chat template, or of its several by name; None where it has none."""
    if template is None:
        return None
    data = template.encode() if isinstance(template, str) else canonical_json(template)
    return hashlib.sha256(data).hexdigest()


def template_name(tokenizer: PreTrainedTokenizerBase, settings: CorpusSettings) -> str:
    """What to call the template in a message."""
    if settings.chat_template is not None:
        return f"corpus.chat_template {settings.chat_template}"
    return f"the chat template of {tokenizer.name_or_path or 'the teacher'}"
