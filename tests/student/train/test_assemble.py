"""The parts of a run: what of the settings decides them, and settings that do not fit the cache."""

from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.run.checkpoints import Progress
from student.train.assemble import assemble
from student.train.processes import Processes
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache
from tests.helpers.small_training import LENGTH, VOCAB, WIDTH, small_settings

SIZES = {"rows": 16, "seq_len": LENGTH, "vocab_size": VOCAB, "hidden_size": WIDTH}


def test_steps_are_those_of_all_epochs_or_fewer(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    """32 rows, 4 a step."""
    epochs = small_settings("--training.epochs", "3", "--training.max_steps", "1000")
    run = assemble(epochs, open_cache(uneven_cache), tmp_path, alone)
    assert (run.reader.batches_per_epoch, run.total_steps) == (8, 24)
    assert assemble(small_settings(), open_cache(uneven_cache), tmp_path, alone).total_steps == 6


def test_the_learning_rate_rises_over_the_warmup_of_all_steps(
    uneven_cache: Path, alone: Processes, tmp_path: Path
) -> None:
    settings = small_settings("--optimizer.warmup_ratio", "0.5")
    run = assemble(settings, open_cache(uneven_cache), tmp_path, alone)
    assert run.engine.get_lr()[0] == pytest.approx(1e-2 / 4)


def test_a_state_says_where_training_stands(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    run = assemble(small_settings(), open_cache(uneven_cache), tmp_path, alone)
    progress = Progress(steps=19, updates=17, epoch_updates=2)
    state = run.state(progress)
    assert state.progress == progress
    assert (state.epoch, state.batch) == (2, 3)
    assert state.cache_fingerprint == run.cache.fingerprint
    assert state.settings["training"]["global_batch"] == 4


def test_a_view_of_the_targets_is_trained_on(alone: Processes, tmp_path: Path) -> None:
    cache = open_cache(make_synthetic_cache(tmp_path / "cache", **SIZES, top_k=6, samples=10))
    run = assemble(small_settings("--targets.top_k", "2", "--targets.samples", "5"), cache, tmp_path, alone)
    assert (run.cache.layout.top_k, run.cache.layout.samples) == (2, 5)
    assert assemble(small_settings(), cache, tmp_path, alone).cache is cache


def test_the_frobenius_term_is_as_the_settings_say(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    cache = open_cache(uneven_cache)
    batch = small_settings("--distillation.frobenius.norm=batch", "--distillation.frobenius.channels=normalised")
    (term,) = assemble(batch, cache, tmp_path, alone).frobenius
    assert term is not None
    assert term.norm == "batch"
    assert term.channel_rms is not None
    assert term.channel_rms.shape == (WIDTH,)
    off = small_settings("--distillation.frobenius.weight_init=0", "--distillation.frobenius.weight_final=0")
    assert assemble(off, cache, tmp_path, alone).frobenius == (None,)


@pytest.mark.parametrize("name", ["temperature_init", "temperature_final"])
def test_a_temperature_the_cache_does_not_know_is_refused_at_once(
    uneven_cache: Path, alone: Processes, tmp_path: Path, name: str
) -> None:
    values = {"temperature_init": "5" if name == "temperature_init" else "2", "temperature_final": "1"}
    if name == "temperature_final":
        values["temperature_final"] = "0.5"
    options = [f"--distillation.{key}={value}" for key, value in values.items()]
    with pytest.raises(
        UserError, match=rf"distillation\.{name}: .* outside the cached range .* set it inside, or build"
    ):
        assemble(small_settings(*options), open_cache(uneven_cache), tmp_path, alone)


def test_held_out_rows_of_another_teacher_are_refused(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    other = make_synthetic_cache(tmp_path / "other", **SIZES | {"vocab_size": VOCAB + 1}, top_k=6)
    settings = small_settings(f"--evaluation.cache={other}")
    with pytest.raises(UserError, match=f"evaluation.cache {other}: another (tokenizer|teacher) than {uneven_cache}"):
        assemble(settings, open_cache(uneven_cache), tmp_path, alone)
