"""What a prompt becomes."""

from tokenizers.processors import TemplateProcessing

from student.inference.tokenizer import encode_prompt
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
