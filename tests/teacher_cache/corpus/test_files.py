"""Documents of every kind of file, from any place in it."""

import gzip
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.corpus.source import Corpus
from teacher_cache.settings import CorpusSettings

files_of_texts = st.lists(st.lists(st.none() | st.text(max_size=8), max_size=6), min_size=1, max_size=4)
endings = st.sampled_from(["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "txt"])


def write_files(folder: Path, texts: list[list[str | None]], ending: str, group: int) -> None:
    for number, inside in enumerate(texts):
        path = folder / f"{number}.{ending}"
        blank = "\n" * (number % 2)
        data = "".join(blank + json.dumps({"text": text}) + "\n" for text in inside).encode()
        if ending == "parquet":
            pq.write_table(pa.table({"text": pa.array(inside, pa.string())}), path, row_group_size=group)
        elif ending == "txt":
            path.write_text("".join(text or "" for text in inside), encoding="utf-8", newline="")
        elif ending == "jsonl.zst":
            path.write_bytes(pa.compress(data, codec="zstd", asbytes=True))
        else:
            path.write_bytes(gzip.compress(data) if ending == "jsonl.gz" else data)


@settings(deadline=None)
@given(texts=files_of_texts, ending=endings, group=st.integers(1, 4), most=st.none() | st.integers(1, 9))
def test_reading_from_a_documents_place_gives_it_and_all_behind(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str | None]], ending: str, group: int, most: int | None
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_files(folder, texts, ending, group)
    corpus = Corpus(CorpusSettings(source=str(folder), max_documents=most))
    placed = list(corpus.documents())
    assert [place.document for place, _ in placed] == list(range(len(placed)))
    if ending != "txt":
        assert [document.text for _, document in placed] == [text or "" for text in itertools.chain(*texts)][:most]
    for place, _ in placed:
        assert list(corpus.documents(place)) == placed[place.document :]
