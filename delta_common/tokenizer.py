"""A tokenizer's identity, and what it puts before a text: the same for the rows of a cache and for a prompt."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PARTS = ("normalizer", "pre_tokenizer", "model")
"""Of a tokenizer's file, what decides which tokens a text has."""


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of all that tokenizes, as a cache's manifest has it: every token with its id, the special ids, and the
    normalizer, the pre-tokenizer and the merges where the tokenizer has a file of them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {} if backend is None else json.loads(backend.to_str())
    tokenizes = {part: parts[part] for part in PARTS if part in parts}
    tokenizes.get("model", {}).pop("vocab", None)  # the tokens have it already
    return _sha256(_vocabulary(tokenizer) | {"tokenizes": tokenizes})


def is_digest_of(tokenizer: "PreTrainedTokenizerBase", digest: str | None) -> bool:
    """Whether a digest is this tokenizer's; older caches have one of tokens and special ids alone."""
    return digest in (tokenizer_digest(tokenizer), _sha256(_vocabulary(tokenizer)))


def _vocabulary(tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    return {"tokens": tokenizer.get_vocab(), "special": tokenizer.all_special_ids}


def _sha256(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def own_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the tokenizer itself puts before a text: a BOS for some, nothing for Qwen."""
    bare: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("x")["input_ids"]
    places = [i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare]
    return dressed[: places[0]] if places else []
