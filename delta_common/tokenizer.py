"""A tokenizer's identity, and what it puts before a text: the same for the rows of a cache and for a prompt."""

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


def own_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the tokenizer itself puts before a text: a BOS for some, nothing for Qwen."""
    bare: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("x")["input_ids"]
    places = [i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare]
    return dressed[: places[0]] if places else []
