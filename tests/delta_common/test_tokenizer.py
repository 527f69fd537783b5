"""A tokenizer's identity, and what it puts before a text."""

import hashlib
import json

from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from delta_common.tokenizer import is_digest_of, own_prefix, tokenizer_digest
from tests.helpers.tokenizers_for_tests import EOS, EOS_TOKEN, byte_tokenizer


def test_the_digest_is_of_what_tokenizes_and_of_nothing_else() -> None:
    one, same = byte_tokenizer(), byte_tokenizer()
    same.padding_side, same.model_max_length = "left", 7
    assert tokenizer_digest(one) == tokenizer_digest(same)
    assert len(tokenizer_digest(one)) == 64
    more = byte_tokenizer()
    more.add_tokens(["Once"])
    assert tokenizer_digest(more) != tokenizer_digest(one)
    special = byte_tokenizer()
    special.add_special_tokens({"bos_token": "a"})
    assert special.get_vocab() == one.get_vocab()
    assert tokenizer_digest(special) != tokenizer_digest(one)


def test_the_digest_sees_a_replaced_part() -> None:
    plain, normalized, split = byte_tokenizer(), byte_tokenizer(), byte_tokenizer()
    normalized.backend_tokenizer.normalizer = normalizers.NFC()
    split.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert plain.get_vocab() == normalized.get_vocab() == split.get_vocab()
    assert len({tokenizer_digest(tokenizer) for tokenizer in (plain, normalized, split)}) == 3


def test_a_digest_of_tokens_alone_is_still_known() -> None:
    """As caches have it that were made before the digest covered the rest."""
    tokenizer = byte_tokenizer()
    content = {"tokens": tokenizer.get_vocab(), "special": tokenizer.all_special_ids}
    older = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    assert is_digest_of(tokenizer, older.hexdigest())
    assert is_digest_of(tokenizer, tokenizer_digest(tokenizer))
    assert not is_digest_of(tokenizer, "0" * 64)
    assert not is_digest_of(tokenizer, None)


def test_the_prefix_is_what_stands_before_the_text() -> None:
    tokenizer = byte_tokenizer()
    assert own_prefix(tokenizer) == []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS_TOKEN} {EOS_TOKEN} $A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, EOS)]
    )
    assert own_prefix(tokenizer) == [EOS, EOS]
