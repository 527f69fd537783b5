"""A model's tokenizer, and how it encodes a prompt."""

from pathlib import Path
from typing import TYPE_CHECKING

from delta_common.tokenizer import is_digest_of, own_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str | Path, digest: str | None) -> "PreTrainedTokenizerBase":
    """The tokenizer beside a model, the one of this digest where its files give it.

    transformers may load the class of the model's family, which replaces what the file says of splitting text. Raises
    as transformers does.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    if digest is not None and not is_digest_of(tokenizer, digest) and (Path(path) / "tokenizer.json").is_file():
        as_written = PreTrainedTokenizerFast.from_pretrained(path)
        return as_written if is_digest_of(as_written, digest) else tokenizer
    return tokenizer


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a prompt: what the tokenizer puts before a text (BOS), then the text, and nothing after it."""
    # Not verbose: the student has no longest text.
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return own_prefix(tokenizer) + tokens
