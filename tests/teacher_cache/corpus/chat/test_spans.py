"""What the assistant speaks in a rendered conversation: never a header, a tool's result or the user's words."""

from dataclasses import replace

import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.chat.spans import (
    Rendered,
    UnclearError,
    render_conversation,
    require_answers_shown,
)
from teacher_cache.corpus.chat.template import ChatTemplate, RefusedError
from teacher_cache.corpus.messages import Conversation, Message
from tests.helpers.chat_families import FAMILIES, Family, conversations, tokenizer_of

CHATML = FAMILIES["ChatML"]
HI: list[Message] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def rendered(family: Family, messages: list[Message], *, marked: bool = False, text: bool = True) -> Rendered:
    template = ChatTemplate(tokenizer_of(family, marked=marked), "the template")
    return render_conversation(template, Conversation(tuple(messages)), special_as_text=text)


def spoken(found: Rendered) -> list[str]:
    return [found.text[start:end] for start, end in found.answers]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_written_out_by_hand(name: str) -> None:
    family = FAMILIES[name]
    for messages in conversations(family):
        pieces = family.by_hand(messages)
        found = rendered(family, messages)
        assert found.text == "".join(words for words, _ in pieces)
        assert spoken(found) == [words for words, mine in pieces if mine]
        assert found.counted == found.answers
        assert found.last == found.answers[-1:]
        assert found.stops


@pytest.mark.parametrize("name", FAMILIES)
def test_what_others_say_is_theirs(name: str) -> None:
    family = FAMILIES[name]
    for messages in conversations(family, seed=1):
        said = [(m["content"].strip(), m["role"]) for m in messages if m["role"] != "assistant"]
        for marked in (False, True):
            found = rendered(family, messages, marked=marked)
            assert [(found.text[start:end], role) for (start, end), role in found.words] == said


@pytest.mark.parametrize("name", FAMILIES)
def test_markers_say_the_same(name: str) -> None:
    family = FAMILIES[name]
    for messages in conversations(family, seed=2):
        plain, marked = (rendered(family, messages, marked=marked) for marked in (False, True))
        assert marked.text == plain.text
        assert [words.lstrip(" ") for words in spoken(marked)] == spoken(plain)
        assert marked.last == marked.answers[-1:]
        assert marked.ends == plain.ends


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_may_be_cut_behind_each_answer(name: str) -> None:
    family = FAMILIES[name]
    for messages in conversations(family, seed=3):
        found = rendered(family, messages)
        cut = [found.text[:end] for end in found.ends]
        for text, (_, stop) in zip(cut, found.answers, strict=True):
            assert text.rstrip() == found.text[:stop]
        assert len(cut) == sum(message["role"] == "assistant" for message in messages)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_names_of_special_tokens_in_messages_are_letters(name: str, marked: bool) -> None:
    family = FAMILIES[name]
    token = family.special[1]
    messages = [{"role": "user", "content": f"what is {token}?"}, {"role": "assistant", "content": f"{token} ends it"}]
    found = rendered(family, messages, marked=marked)
    pieces = family.by_hand(messages)
    assert found.text == "".join(words for words, _ in pieces)
    assert [words.lstrip(" ") for words in spoken(found)] == [words for words, mine in pieces if mine]
    assert [found.text[start:end] for start, end in found.quoted] == [token, token]
    assert rendered(CHATML, HI, text=False).quoted == ()


def test_of_a_prompt_no_answer_counts() -> None:
    for marked in (False, True):
        template = ChatTemplate(tokenizer_of(CHATML, marked=marked), "t")
        conversation = Conversation(tuple(HI + HI), first_answer=2)
        found = render_conversation(template, conversation, special_as_text=True)
        assert len(found.answers) == 2
        assert found.counted == found.answers[1:]


def test_a_plain_prompt_and_its_completion_need_no_template() -> None:
    template = ChatTemplate(tokenizer_of(CHATML), "t")
    found = render_conversation(template, Conversation(plain=("2 + 2 = ", "4")), special_as_text=True)
    assert (found.text, found.answers, found.words) == ("2 + 2 = 4", ((8, 9),), (((0, 8), "user"),))


def test_a_template_that_is_not_asked_begins_an_answer_behind_its_header() -> None:
    """Old ChatML templates know no `add_generation_prompt`."""
    unasked = replace(CHATML, marked=CHATML.marked.partition("{% if add_generation_prompt")[0])
    assert spoken(rendered(unasked, HI + HI)) == ["ho<|im_end|>", "ho<|im_end|>"]


def test_a_template_without_an_end_of_turn_is_known() -> None:
    family = replace(CHATML, marked="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    found = rendered(family, HI + HI)
    assert spoken(found) == ["ho", "ho"]
    assert not found.stops


CHANGES_THE_PAST = (
    "{% for m in messages %}{{ m.role + m.content + ('<|endoftext|>' if loop.last else '<|im_end|>') }}{% endfor %}"
)
"""What ends an answer is another token once more follows, as in OpenAI's gpt-oss."""
HIDES = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


def test_a_template_that_does_not_show_answers_is_refused_by_name() -> None:
    family = replace(CHATML, marked=CHANGES_THE_PAST)
    with pytest.raises(UnclearError):
        rendered(family, HI + HI)
    with pytest.raises(
        UserError, match=r"^the template: .*give as corpus.chat_template a file in which \{% generation"
    ):
        require_answers_shown(ChatTemplate(tokenizer_of(family), "the template"))
    require_answers_shown(ChatTemplate(tokenizer_of(CHATML), "the template"))


def test_a_template_that_leaves_out_an_answer_does_not_take_the_conversation() -> None:
    with pytest.raises(RefusedError):
        rendered(replace(CHATML, marked=HIDES), HI)


def test_a_template_that_marks_the_users_words_is_not_believed() -> None:
    marks_all = (
        "{% generation %}{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}{% endgeneration %}"
    )
    with pytest.raises(UnclearError, match="what others say"):
        rendered(replace(CHATML, marked=marks_all), HI, marked=True)


def test_a_template_that_takes_arguments_as_text_gets_them_so() -> None:
    takes_text = CHATML.marked.replace(
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
        "{% for c in message.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    )
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [HI[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert spoken(rendered(replace(CHATML, marked=takes_text), messages)) == ['f{"x": 1}<|im_end|>']
