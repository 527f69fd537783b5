"""Examples out of text: what is asked for stood in the passage before, and documents are as they were."""

from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

from delta_common.errors import UserError
from student.evaluate.tasks.held_out_text import (
    PASSAGE,
    api_names,
    cloze,
    documents_of,
    documents_of_caches,
    first_texts,
)
from teacher_cache.build.job import build as build_cache
from teacher_cache.read.cache import open_cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import BuildSettings
from tests.helpers.tokenizers_for_tests import EOS, byte_tokenizer

SENTENCES = (
    "The server sends every packet through the gateway before the client answers.",
    "A client calls os.path.join and then shutil.copy_file to store what the server sends.",
    "After that json.dumps and os.path.split and os.path.exists and os.path.isdir are called by the gateway.",
)
DOCUMENTS = [" ".join(SENTENCES[(n + d) % 3] for n in range(12)) for d in range(4)]


def test_a_word_that_is_asked_for_stood_in_the_passage_before() -> None:
    task = cloze(DOCUMENTS, 20)
    assert task == cloze(DOCUMENTS, 20)
    assert len(task.examples) == 20
    for example in task.examples:
        assert len(example.prompt) <= PASSAGE
        assert not example.prompt.endswith(" ")
        assert example.prompt + example.answer in DOCUMENTS[example.group]
        assert example.answer in example.choices
        assert len(set(example.choices)) == 4
        assert all(choice in f" {example.prompt}" for choice in example.choices)


def test_documents_take_turns() -> None:
    assert [example.group for example in cloze(DOCUMENTS, 8).examples] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_name_goes_on_as_it_did_before() -> None:
    examples = api_names(DOCUMENTS, 20).examples
    assert len(examples) == 20
    for example in examples:
        first = example.prompt.rpartition(" ")[2]
        assert first + example.answer in example.prompt
        assert example.answer in example.choices
        if first == "os":
            assert all(choice.startswith(".path.") for choice in example.choices)


def test_text_that_repeats_nothing_gives_nothing() -> None:
    assert cloze(["word " * 10], 5).examples == ()
    assert api_names(["no name here " * 50], 5).examples == ()


@pytest.mark.parametrize("mode", ["packed", "document"])
def test_documents_of_a_cache_are_those_it_was_built_of(tmp_path: Path, tiny_teacher: Path, mode: str) -> None:
    (tmp_path / "texts").mkdir()
    texts = ["first one", "the second, which is longer than a row of the cache", "third"]
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    said = {
        "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
        "corpus": {"source": str(tmp_path / "texts")},
        "rows": {"seq_len": 16, "mode": mode},
        "targets": {"top_k": 4, "samples": 4},
    }
    build_cache(BuildSettings.model_validate(said), tmp_path / "cache")
    found = documents_of_caches([str(tmp_path / "cache")])
    assert found == (texts if mode == "packed" else [text[:16] for text in texts])


def test_a_conversation_is_text_throughout(synthetic_cache: Path) -> None:
    tokens = np.array([[*byte_tokenizer().encode("hi!"), EOS, EOS]], np.uint32)
    starts = np.array([[True, False, False, False]])
    mask = np.array([[False, False, True, False]])
    arrays = {"tokens": tokens, "document_start": starts, "loss_mask": mask, "role": np.zeros((1, 4), np.uint8)}
    rows = CachedRows(open_cache(synthetic_cache).manifest, arrays)
    assert list(documents_of([rows], byte_tokenizer())) == ["hi!"]


def test_a_corpus_without_end_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student.evaluate.tasks.held_out_text.ENOUGH", 25)
    assert first_texts(repeat("ten letter")) == ["ten letter"] * 3
    assert first_texts(["few"]) == ["few"]


def test_a_cache_without_a_tokenizer_has_no_text(synthetic_cache: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer to read its text with"):
        documents_of_caches([str(synthetic_cache)])
