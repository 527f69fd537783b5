"""The model card of an export: where it comes from, how good it is, how to use it."""

from dataclasses import replace
from pathlib import Path

import torch

from student.export.card import model_card
from student.run.files import PlannedStage
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import open_cache
from tests.helpers.made_runs import a_run
from tests.helpers.small_training import small_settings

DTYPES = {"student.embedding": torch.bfloat16, "student.stack.blocks.0.weight": torch.float32}


def card_of(path: Path, manifest: Manifest, *options: str) -> str:
    files = replace(a_run(path), settings=small_settings("--optimizer.learning_rate=1", *options))
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


def test_it_says_what_the_student_is_and_what_it_began_with(synthetic_cache: Path, tmp_path: Path) -> None:
    manifest = open_cache(synthetic_cache).manifest
    paper, hybrid = (card_of(tmp_path / "run", manifest, f"--model.preset={name}") for name in ("paper", "hybrid"))
    assert f"# An xLSTM distilled from {manifest.teacher.name}\n" in paper
    assert "a stack of xLSTM blocks, between the teacher's own embedding" in paper
    assert "| began with | random weights |" in paper
    assert f"# A student that began as {manifest.teacher.name}\n" in hybrid
    assert "attention over the last 64 positions and the first 4 beside a recurrence, between" in hybrid
    assert "| began with | its teacher's weights |" in hybrid
    assert "- xlstm\n" in paper
    assert "xLSTM blocks" not in hybrid
    assert "- xlstm\n" not in hybrid


def test_it_names_stages_where_there_are_several(synthetic_cache: Path, tmp_path: Path) -> None:
    files, manifest = a_run(tmp_path / "run"), open_cache(synthetic_cache).manifest
    assert files.summary is not None
    stage = PlannedStage(name="distillation", train="body", steps=20)
    one, two = (files.summary.model_copy(update={"stages": (stage,) * count}) for count in (1, 2))
    assert "| stages |" not in model_card(files, one, manifest, DTYPES)
    words = "distillation of the teacher's own weights, 20 steps"
    assert f"| stages | {words}; {words} |" in model_card(files, two, manifest, DTYPES)


def test_a_last_step_without_some_of_the_terms_is_told_without_them(synthetic_cache: Path, tmp_path: Path) -> None:
    files = a_run(tmp_path / "run")
    files.metrics[-1] |= {"kl": None}
    del files.metrics[-1]["alpha"]
    assert files.summary is not None
    card = model_card(files, files.summary, open_cache(synthetic_cache).manifest, DTYPES)
    assert "| loss | " in card
    assert "| kl | " not in card
    assert "| alpha | " not in card


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
