"""What a prompt becomes."""

from pathlib import Path

from tokenizers.processors import TemplateProcessing

from delta_common.tokenizer import is_digest_of, tokenizer_digest
from student.inference.tokenizer import encode_prompt, load_tokenizer
from tests.helpers.tokenizers_for_tests import EOS, EOS_TOKEN, byte_tokenizer


def test_a_prompt_begins_as_the_tokenizer_begins_a_text_and_does_not_end() -> None:
    tokenizer = byte_tokenizer()
    plain = encode_prompt(tokenizer, "ab")
    assert tokenizer.decode(plain) == "ab"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS_TOKEN} $A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, EOS)]
    )
    assert tokenizer("ab")["input_ids"] == [EOS, *plain, EOS]
    assert encode_prompt(tokenizer, "ab") == [EOS, *plain]
    assert encode_prompt(tokenizer, "") == [EOS]


def test_a_tokenizer_is_as_its_file_says_where_transformers_would_take_another(tiny_teacher: Path) -> None:
    """Beside a Qwen2, whose class in transformers splits text in its own way."""
    digest = tokenizer_digest(byte_tokenizer())
    assert not is_digest_of(load_tokenizer(tiny_teacher, None), digest)
    assert is_digest_of(load_tokenizer(tiny_teacher, digest), digest)
    assert not is_digest_of(load_tokenizer(tiny_teacher, "another"), digest)
