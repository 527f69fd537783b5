import pytest

from teacher_cache.format.keys import is_metadata_key, is_plain_key, metadata_key


@pytest.mark.parametrize("key", ["zarr.json", "logits/ids/c/0/0/0", "teacher/tokenizer/added_tokens.json", "a_b-c+d/0"])
def test_keys_of_a_cache_are_plain(key: str) -> None:
    assert is_plain_key(key)


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".locks/x", "a/.b", "a\\b", "a b", "C:/x", "é", "a\n"]
)
def test_a_key_that_could_lead_out_of_the_cache_is_not_plain(key: str) -> None:
    assert not is_plain_key(key)


def test_metadata_is_told_by_the_last_name() -> None:
    assert metadata_key("logits/ids") == "logits/ids/zarr.json"
    assert is_metadata_key("logits/ids/zarr.json")
    assert is_metadata_key("zarr.json")
    assert not is_metadata_key("zarr.json/c/0")
    assert not is_metadata_key("logits/ids/my-zarr.json")
