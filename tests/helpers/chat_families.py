"""Chat templates of the families that people use, cut down to what they do around messages, and the same by hand.

`by_hand` says for each family what a conversation looks like, piece by piece, and which pieces the assistant speaks; it
shares no code with the templates.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Message = dict[str, Any]
Piece = tuple[str, bool]
"""A piece of text, and whether the assistant speaks it."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{% if message.content or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN_THINKS = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% set said = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in message.content else '' %}{% generation %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}{% generation %}"
    "{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' }}{% generation %}{{ message['content'].split('</think>')[-1] + eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


def _chatml(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for message in messages:
        mine = message["role"] == "assistant"
        pieces += [
            (f"<|im_start|>{message['role']}\n", False),
            (f"{message['content']}<|im_end|>", mine),
            ("\n", False),
        ]
    return pieces


def _smollm(messages: list[Message]) -> list[Piece]:
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    return [(system, False)] * (messages[0]["role"] != "system") + _chatml(messages)


def _qwen(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            first = at == 0 or messages[at - 1]["role"] != "tool"
            last = at == len(messages) - 1 or messages[at + 1]["role"] != "tool"
            words = f"\n<tool_response>\n{message['content']}\n</tool_response>"
            pieces.append(("<|im_start|>user" * first + words + "<|im_end|>\n" * last, False))
        else:
            calls = [
                f'<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments": '
                f"{json.dumps(call['function']['arguments'], ensure_ascii=False)}}}\n</tool_call>"
                for call in message.get("tool_calls", [])
            ]
            words = "\n".join([*([message["content"]] if message["content"] or not calls else []), *calls])
            pieces += _chatml([{"role": message["role"], "content": words}])
    return pieces


def _qwen_thinks(messages: list[Message]) -> list[Piece]:
    last = max(at for at, message in enumerate(messages) if message["role"] == "user")
    told = []
    for at, message in enumerate(messages):
        words = message["content"]
        if message["role"] == "assistant":
            thought, _, said = words.rpartition("</think>")
            thought, said = thought.removeprefix("<think>").strip("\n"), said.lstrip("\n")
            words = f"<think>\n{thought}\n</think>\n\n{said}" if at > last else said
        told.append({**message, "content": words})
    return _chatml(told)


def _llama3(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = [("<|begin_of_text|>", False)]
    for message in messages:
        header = f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n"
        pieces += [(header, False), (message["content"].strip() + "<|eot_id|>", message["role"] == "assistant")]
    return pieces


def _mistral(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = [("<s>", False)]
    for message in messages:
        if message["role"] == "user":
            pieces.append((f"[INST] {message['content']} [/INST]", False))
        else:  # without markers the space before an answer is no part of it
            pieces += [(" ", False), (f"{message['content'].strip()}</s>", True)]
    return pieces


def _gemma(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = [("<bos>", False)]
    for message in messages:
        role = {"assistant": "model"}.get(message["role"], message["role"])
        words = message["content"].strip() + "<end_of_turn>"
        pieces += [(f"<start_of_turn>{role}\n", False), (words, role == "model"), ("\n", False)]
    return pieces


def _phi(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for message in messages:
        words = message["content"] + "<|end|>"
        pieces += [(f"<|{message['role']}|>\n", False), (words, message["role"] == "assistant"), ("\n", False)]
    return [*pieces, ("<|endoftext|>", False)]


def _deepseek(messages: list[Message]) -> list[Piece]:
    pieces: list[Piece] = [("<｜begin▁of▁sentence｜>", False)]
    for message in messages:
        if message["role"] == "assistant":
            said = message["content"].rpartition("</think>")[2]
            pieces += [("<｜Assistant｜>", False), (said + "<｜end▁of▁sentence｜>", True)]
        else:
            pieces.append(("<｜User｜>" * (message["role"] == "user") + message["content"], False))
    return pieces


@dataclass(frozen=True)
class Family:
    """A template with markers, its special tokens, and the same by hand."""

    marked: str
    special: tuple[str, ...]
    eos: str
    bos: str | None
    by_hand: Callable[[list[Message]], list[Piece]]
    system: bool = True
    tools: bool = False

    @property
    def template(self) -> str:
        """The template without markers, as its family publishes it."""
        return self.marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "ChatML": Family(CHATML, IM, "<|im_end|>", None, _chatml),
    "SmolLM": Family(SMOLLM, IM, "<|im_end|>", "<|im_start|>", _smollm),
    "Qwen": Family(QWEN, IM, "<|im_end|>", None, _qwen, tools=True),
    "Qwen that thinks": Family(QWEN_THINKS, IM, "<|im_end|>", None, _qwen_thinks),
    "Llama 3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|begin_of_text|>",
        _llama3,
    ),
    "Mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>", _mistral, system=False),
    "Gemma": Family(
        GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", _gemma, system=False
    ),
    "Phi": Family(
        PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>", None, _phi
    ),
    "DeepSeek": Family(
        DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        _deepseek,
    ),
}

WORDS = (
    "Hello",
    "user",
    "assistant",
    "model",
    "What is 2 + 2?",
    "def f(x):\n    return x",
    "Straße 🙂",
    "<b>",
    "  ",
    "\n",
)
THOUGHT = "<think>\nLet me see.\n</think>\n\n"


def conversations(family: Family, count: int = 20, seed: int = 0) -> list[list[Message]]:
    """Seeded conversations that the family's template takes: words of headers, thoughts, tool calls among them."""
    chance = random.Random(seed)

    def words() -> str:
        return "a" + " ".join(chance.choices(WORDS, k=chance.randint(1, 6))) + "z"

    def one() -> list[Message]:
        messages = [{"role": "system", "content": words()}] * (family.system and chance.random() < 0.5)
        for _ in range(chance.randint(1, 4)):
            messages.append({"role": "user", "content": words()})
            if family.tools and chance.random() < 0.5:
                call = {"type": "function", "function": {"name": "f", "arguments": {"x": words()}}}
                messages.append({"role": "assistant", "content": chance.choice(["", words()]), "tool_calls": [call]})
                messages += [{"role": "tool", "content": words()}] * chance.randint(1, 2)
            thinks = family.by_hand in (_qwen_thinks, _deepseek) and chance.random() < 0.5
            messages.append({"role": "assistant", "content": THOUGHT * thinks + words()})
        return messages

    return [one() for _ in range(count)]


@cache
def _trained() -> str:
    """A byte-level BPE tokenizer trained on a little text, in which line breaks and words join."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([f"{word} assistant user model\n\n{word}\n" for word in WORDS] * 50, trainer)
    return backend.to_str()


def tokenizer_of(family: Family, *, marked: bool = False) -> PreTrainedTokenizerFast:
    """A small trained tokenizer with the family's special tokens and its template."""
    backend = Tokenizer.from_str(_trained())
    backend.add_special_tokens(list(family.special))
    given = {} if family.bos is None else {"bos_token": family.bos}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=family.eos, pad_token=family.eos, **given)
    tokenizer.chat_template = family.marked if marked else family.template
    return tokenizer
