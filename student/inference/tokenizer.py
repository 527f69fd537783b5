"""A tokenizer's identity, and how it encodes a prompt."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of every token with its id and of the special ids, as a cache's manifest has it."""
    content = {"tokens": tokenizer.get_vocab(), "special": tokenizer.all_special_ids}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a prompt: what the tokenizer puts before a text (BOS), then the text, and nothing after it."""
    bare = _tokens(tokenizer, "x", special=False)
    dressed = _tokens(tokenizer, "x", special=True)
    places = [i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare]
    prefix = dressed[: places[0]] if places else []
    return prefix + _tokens(tokenizer, text, special=False)


def _tokens(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    # Not verbose: the student has no longest text.
    found: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return found
