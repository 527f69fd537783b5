"""A long document, piece by piece, has the tokens of the whole."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from teacher_cache.corpus import long_text
from teacher_cache.corpus.long_text import encode_long

WORDS = ["alpha", "beta", "Gamma", "naïve", "中文字", "1234567", "don't", "\n\n", "\t", "  ", "...", "🙂", "x=y**2;"]


def text_of(words: int, seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) + chance.choice(WORDS)[: chance.randint(0, 4)] for _ in range(words))


@pytest.fixture(scope="module", params=["byte-level", "metaspace", "unsplit"])
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    """BPE over words of bytes, as most have it; over words with their space; and over the text without any split."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    alphabet: list[str] = []
    if request.param == "byte-level":
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif request.param == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    corpus = [text_of(30, seed) for seed in range(200)]
    made.train_from_iterator(corpus, trainer)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_pieces_give_the_tokens_of_the_whole(backend: Tokenizer, seed: int) -> None:
    text = text_of(4000, seed)
    whole = backend.encode(text, add_special_tokens=False).ids
    assert encode_long(backend, text, piece=2000, overlap=400).tolist() == whole
    assert encode_long(backend, text, piece=len(text) - 1, overlap=600).tolist() == whole


def test_a_text_in_which_pieces_never_agree_is_encoded_whole(backend: Tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    text = text_of(2000, 0)
    monkeypatch.setattr(long_text, "_joint", lambda *_: None)
    assert encode_long(backend, text, piece=1000, overlap=200).tolist() == backend.encode(text).ids


def test_a_short_text_is_one_piece(backend: Tokenizer) -> None:
    assert encode_long(backend, "alpha beta").tolist() == backend.encode("alpha beta", add_special_tokens=False).ids
    assert encode_long(backend, "").dtype == np.uint32
