"""Chat templates: a tokenizer's own or a file's, their digests, and what they render."""

from pathlib import Path

import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.chat.template import (
    ChatTemplate,
    RefusedError,
    read_template,
    template_digest,
    template_name,
    use_template,
)
from teacher_cache.corpus.messages import Conversation, Message
from teacher_cache.settings import CorpusSettings
from tests.helpers.chat_families import FAMILIES, conversations, tokenizer_of

HI: list[Message] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def asked(**more: str) -> CorpusSettings:
    return CorpusSettings(source="x", messages_column="messages", **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_are_rendered_as_transformers_renders_them(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    for messages in conversations(family, 5):
        expected = tokenizer.apply_chat_template(messages, tokenize=False)
        assert ChatTemplate(tokenizer, "t").render(messages) == expected
        begun = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert ChatTemplate(tokenizer, "t").render(messages[:1], ask=True) == begun


def test_markers_are_noticed() -> None:
    family = FAMILIES["ChatML"]
    assert not ChatTemplate(tokenizer_of(family), "t").has_markers
    template = ChatTemplate(tokenizer_of(family, marked=True), "t")
    assert template.has_markers
    text, spans = template.render_marked(Conversation(tuple(HI)))
    assert [text[start:end] for start, end in spans] == ["ho<|im_end|>"]


def test_today_is_one_day_for_ever() -> None:
    tokenizer = tokenizer_of(FAMILIES["Llama 3"])
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }}"
    assert ChatTemplate(tokenizer, "t").render(HI) == "Today: 26 Jul 2024 2024"


def test_what_a_template_raises_is_a_refusal() -> None:
    with pytest.raises(RefusedError, match="must alternate"):
        ChatTemplate(tokenizer_of(FAMILIES["Gemma"]), "t").render([HI[0], HI[0]])


def test_a_file_takes_the_place_of_the_tokenizers_own(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["ChatML"])
    own = tokenizer.chat_template
    use_template(tokenizer, asked())
    assert tokenizer.chat_template == own
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    use_template(tokenizer, asked(chat_template=str(file)))
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert template_name(tokenizer, asked(chat_template=str(file))) == f"corpus.chat_template {file}"
    use_template(tokenizer, CorpusSettings(source="x"))


def test_a_template_that_is_none_is_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["ChatML"])
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"corpus\.chat_template: the teacher's tokenizer has no chat template"):
        use_template(tokenizer, asked())
    with pytest.raises(UserError, match=r"corpus.chat_template .*absent: cannot be read"):
        read_template(str(tmp_path / "absent"))
    file = tmp_path / "bad.jinja"
    file.write_text("a\n{% for %}")
    with pytest.raises(UserError, match=r"bad.jinja: line 2: .*mend the template"):
        read_template(str(file))
    file.write_text("{{ raise_exception('not this one') }}")
    assert read_template(str(file))


def test_another_template_has_another_digest() -> None:
    assert template_digest(None) is None
    digests = {template_digest(t) for t in ("a", "b", {"default": "a", "tool_use": "b"})}
    assert len(digests) == 3
