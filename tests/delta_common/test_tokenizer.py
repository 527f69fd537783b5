"""A tokenizer's identity, and what it puts before a text."""

from tokenizers.processors import TemplateProcessing

from delta_common.tokenizer import own_prefix, tokenizer_digest
from tests.helpers.tokenizers_for_tests import EOS, EOS_TOKEN, byte_tokenizer


def test_the_digest_is_of_tokens_and_special_ids_and_of_nothing_else() -> None:
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


def test_the_prefix_is_what_stands_before_the_text() -> None:
    tokenizer = byte_tokenizer()
    assert own_prefix(tokenizer) == []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS_TOKEN} {EOS_TOKEN} $A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, EOS)]
    )
    assert own_prefix(tokenizer) == [EOS, EOS]
