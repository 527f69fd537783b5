"""The model card of an export: where it comes from, how good it is, how to use it."""

from pathlib import Path

import torch

from student.export.card import model_card
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import open_cache
from tests.helpers.made_runs import a_run

DTYPES = {"student.embedding": torch.bfloat16, "student.stack.blocks.0.weight": torch.float32}


def card_of(path: Path, manifest: Manifest, **run: str) -> str:
    files = a_run(path, **run)  # type: ignore[arg-type]
    assert files.summary is not None
    return model_card(files, files.summary, manifest, DTYPES)


def test_it_says_where_it_comes_from_and_how_good_it_is(synthetic_cache: Path, tmp_path: Path) -> None:
    manifest = open_cache(synthetic_cache).manifest
    card = card_of(tmp_path / "run", manifest)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "10 trained of 20 parameters" in card
    assert f"| teacher's weights, sha256 | {manifest.teacher.weights_sha256} |" in card
    assert f"| cache, fingerprint | {'beef' * 16} |" in card
    # The last evaluation beside the teacher's, which has no KL to itself.
    assert "| cross-entropy, nats per token | 5.0000 | 2.5000 |" in card
    assert "| KL from the teacher at T = 1, nats | 2.0000 | – |" in card
    assert "after 40 steps" in card
    assert '"learning_rate": 1.0' in card
    assert "as the cache has them (bfloat16)" in card
    assert "when training ended (float32; it computed in fp32)" in card


def test_it_names_the_line_that_registers_the_model_only_where_there_is_text(
    synthetic_cache: Path, tmp_path: Path
) -> None:
    manifest = open_cache(synthetic_cache).manifest
    assert "it takes tokens, not text" in card_of(tmp_path / "run", manifest)
    with_files = manifest.model_copy(update={"tokenizer": manifest.tokenizer.model_copy(update={"has_files": True})})
    card = card_of(tmp_path / "run", with_files)
    assert "import student.transformers" in card
    assert "it takes tokens, not text" not in card


def test_a_pipe_does_not_end_a_cell(synthetic_cache: Path, tmp_path: Path) -> None:
    manifest = open_cache(synthetic_cache).manifest
    corpus = manifest.model_copy(update={"corpus": {"source": "a|b"}})
    assert "| corpus | a\\|b |" in card_of(tmp_path / "run", corpus)
