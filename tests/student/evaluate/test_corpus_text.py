"""Text as rows of a cache's length by its tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from delta_common.errors import UserError
from student.evaluate.corpus_text import documents_of_corpus, text_rows
from teacher_cache.read.cache import Cache, open_cache
from tests.helpers.small_training import LENGTH
from tests.helpers.tokenizers_for_tests import byte_tokenizer


def test_rows_are_the_tokens_of_the_text_and_have_no_targets(
    uneven_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(Cache, "tokenizer_folder", tmp_path / "tokenizer")
    text = "".join(chr(97 + n % 26) for n in range(5 * (LENGTH + 1)))
    (tmp_path / "text.txt").write_text(text)
    groups = list(text_rows(str(tmp_path / "text.txt"), open_cache(uneven_cache), 2))
    assert {len(group.tokens) for group in groups[:-1]} == {2}
    tokens = np.concatenate([group.tokens for group in groups])
    assert tokens.shape[1] == LENGTH + 1
    encoded = byte_tokenizer().encode(text)
    assert tokens[0].tolist() == encoded[: LENGTH + 1]
    assert all(group.document_start.shape == group.loss_mask.shape for group in groups)
    assert groups[0].document_start[0, 0]
    assert all(group.ids is None and group.final_hidden is None and group.hidden_mean is None for group in groups)


def test_a_cache_without_a_tokenizer_cannot_read_text(uneven_cache: Path) -> None:
    with pytest.raises(
        UserError, match=r"--corpus a\.txt: .* has no tokenizer to read text with; give --cache of a real"
    ):
        next(text_rows("a.txt", open_cache(uneven_cache), 2))


def test_documents_are_the_texts_that_are_not_empty(tmp_path: Path) -> None:
    for name, text in {"a": "one", "b": "", "c": "three"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert list(documents_of_corpus(str(tmp_path))) == ["one", "three"]
    with pytest.raises(UserError, match="nowhere"):
        list(documents_of_corpus(str(tmp_path / "nowhere.txt")))
