"""Samples of text: beginnings of rows spread over a cache, continued by the student."""

from pathlib import Path

import pytest

from student.inference.generate import generate_tokens
from student.train.assemble import assemble
from student.train.processes import Processes
from student.train.samples import PROMPT_TOKENS, SAMPLES, WRITTEN_TOKENS, write_samples
from teacher_cache.read.cache import Cache, open_cache
from tests.helpers.small_training import small_settings
from tests.helpers.tokenizers_for_tests import byte_tokenizer


def test_beginnings_are_continued_by_the_likeliest_and_by_drawn_tokens(
    uneven_cache: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(Cache, "tokenizer_folder", tmp_path / "tokenizer")
    run = assemble(small_settings(), open_cache(uneven_cache), tmp_path, alone)
    samples = write_samples(run)
    assert len(samples) == SAMPLES
    second = run.cache[-(-len(run.cache) // SAMPLES)]
    seen = [int(token) for token in second.tokens[: min(PROMPT_TOKENS, int(second.loss_mask.sum()) + 1)]]
    assert samples[1].prompt == tokenizer.decode(seen)
    stop = run.cache.manifest.eos_token_id
    written = generate_tokens(run.student, seen, max_new_tokens=WRITTEN_TOKENS, stop_token=stop)
    assert samples[1].likeliest == tokenizer.decode(written)
    assert samples == write_samples(run)


def test_without_a_tokenizer_there_are_none(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    assert write_samples(assemble(small_settings(), open_cache(uneven_cache), tmp_path, alone)) == []
