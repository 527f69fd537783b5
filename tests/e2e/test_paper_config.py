"""The paper's configs at the paper's vocabulary: a Qwen2 of random weights, documents with FineWeb's columns."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from student.cli import train as train_cli
from teacher_cache import open_cache
from teacher_cache.cli import app
from tests.helpers import ROOT
from tests.helpers.tiny_teacher import save_tiny_teacher
from tests.helpers.tokenizers_for_tests import QWEN_EOS, QWEN_TOKENS, qwen_sized_tokenizer

PADDED_VOCAB, WIDTH, SEQ_LEN = 151_936, 64, 512
DOCUMENT_BYTES = [40, 700, 90, 60]
NARROW = [
    *("--training.precision", "fp32", "--training.max_steps", "2", "--training.epochs", "1"),
    *("--training.micro_batch_size", "2", "--training.gradient_accumulation", "1"),
    *("--model.blocks", "2", "--model.heads", "4"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("qwen")
    save_tiny_teacher(
        folder,
        vocab_size=PADDED_VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        max_position_embeddings=SEQ_LEN,
        eos_token_id=QWEN_EOS,
        pad_token_id=QWEN_EOS,
    )
    qwen_sized_tokenizer().save_pretrained(folder)
    return folder


def write_corpus(path: Path) -> Path:
    """One document a row of the cache, one of them longer than a row."""
    demo: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "make_demo_corpus.py"))
    texts = [("Recurrent student, attentive teacher. " * 20)[:size] for size in DOCUMENT_BYTES]
    records = [demo["record"](f"test:{i}", f"{i}.txt", text) for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(records, schema=demo["SCHEMA"]), path)
    return path


@pytest.fixture(scope="module")
def cache(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("paper")
    overrides = [
        *("--teacher.model", str(teacher), "--corpus.source", str(write_corpus(folder / "fineweb.parquet"))),
        *("--rows.count", str(len(DOCUMENT_BYTES))),
    ]
    command = ["build", str(ROOT / "configs" / "paper.yaml"), "--out", str(folder / "cache"), *overrides]
    assert app(command, result_action="return_value") == 0
    return folder / "cache"


def test_padded_vocabulary_rows_are_never_kept(cache: Path, teacher: Path) -> None:
    opened = open_cache(cache)
    manifest = opened.manifest
    assert (manifest.vocab_size, manifest.padded_vocab_size) == (QWEN_TOKENS, PADDED_VOCAB)
    rows = opened.rows(range(len(opened)))
    assert rows.ids is not None
    assert rows.ids.max() < QWEN_TOKENS
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    with torch.inference_mode():
        first = model(torch.from_numpy(rows.tokens[:1, :40].astype(np.int64))).logits
    assert (first.topk(256).indices >= QWEN_TOKENS).any(), "no padded row was ever in reach"


def test_documents_have_a_row_each_and_their_padding_is_masked(cache: Path) -> None:
    opened = open_cache(cache)
    rows = opened.rows(range(len(opened)))
    assert rows.loss_mask.shape == (len(DOCUMENT_BYTES), SEQ_LEN)
    assert rows.loss_mask.sum(axis=1).tolist() == [min(size, SEQ_LEN) for size in DOCUMENT_BYTES]
    assert rows.document_start.sum(axis=1).tolist() == [1] * len(DOCUMENT_BYTES)
    for size, tokens in zip(DOCUMENT_BYTES, rows.tokens, strict=True):
        padding_and_end = tokens[min(size, SEQ_LEN + 1) :]
        assert (padding_and_end == QWEN_EOS).all()
        assert (tokens == QWEN_EOS).sum() == len(padding_and_end)
    for kept in (rows.ids, rows.values, rows.log_mass, rows.hidden_mean):
        assert kept is not None
        assert kept[rows.loss_mask].any()
        assert not kept[~rows.loss_mask].any()


def test_the_papers_student_trains_from_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / "paper-student.yaml")
    command = ["student-train", "--cache", str(cache), "--config", config, "--out", str(tmp_path / "run"), *NARROW]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        train_cli.main()
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    assert (tmp_path / "run" / "trained.safetensors").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
