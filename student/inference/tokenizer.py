"""How a tokenizer encodes a prompt."""

from typing import TYPE_CHECKING

from delta_common.tokenizer import own_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a prompt: what the tokenizer puts before a text (BOS), then the text, and nothing after it."""
    # Not verbose: the student has no longest text.
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return own_prefix(tokenizer) + tokens
