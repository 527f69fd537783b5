"""Byte tokenizers, built in a moment and without a network."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

EOS = 256
EOS_TOKEN = "<|endoftext|>"

QWEN_EOS = 151_643
QWEN_TOKENS = 151_665
"""Real tokens of Qwen2.5; its models have 151,936 rows of vocabulary."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0 .. 255 are bytes; 256 is EOS and padding at once, by Qwen's name for it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    return _over_bytes(backend, [EOS_TOKEN])


def qwen_sized_tokenizer() -> PreTrainedTokenizerFast:
    """As many tokens as Qwen2.5's and its EOS, padding at once; what text becomes is the bytes, 0 .. 255."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"<word {i}>" for i in range(len(alphabet), QWEN_EOS)]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(words)}, merges=[]))
    return _over_bytes(backend, [EOS_TOKEN] + [f"<|special {i}|>" for i in range(QWEN_EOS + 1, QWEN_TOKENS)])


def _over_bytes(backend: Tokenizer, special: list[str]) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS_TOKEN, pad_token=EOS_TOKEN)
