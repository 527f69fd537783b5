"""Values that no teacher can have given are found, though every byte is as it was written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.content import row_problems, verify_bytes_and_content
from teacher_cache.verify.objects import verify
from tests.helpers.damageable import rewrite_shard

KINDS: dict[str, dict[str, Any]] = {
    "sampled": {"top_k": 4, "samples": 12, "hidden": "int8"},
    "top": {"top_k": 8},
    "exact": {"top_k": 1, "mode": "exact", "hidden": "none"},
}


def make(path: Path, kind: str) -> Path:
    sizes = {"rows": 20, "seq_len": 12, "vocab_size": 300, "hidden_size": 32, "rows_per_shard": 8}
    return make_synthetic_cache(path, **sizes, **KINDS[kind])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sound") / "cache", "sampled")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_possible(kind: str, tmp_path: Path) -> None:
    findings = verify_bytes_and_content(LocalStore(make(tmp_path / "cache", kind)))
    assert findings.faults == []
    assert findings.seconds > 0
    assert ("alignment" in findings.measures) == (kind != "exact")


def test_values_are_not_looked_at_where_bytes_are_damaged(copy: Path) -> None:
    (copy / "tokens/c/1/0").unlink()
    findings = verify_bytes_and_content(LocalStore(copy))
    assert [fault.kind for fault in findings.faults] == ["missing"]
    assert findings.measures == {}


def outside(arrays: dict[str, Any]) -> None:
    arrays["logits/ids"][0, 3, 1] = 300


def not_finite(arrays: dict[str, Any]) -> None:
    arrays["logits/values"][2, 5, 0] = np.nan


def not_sorted(arrays: dict[str, Any]) -> None:
    arrays["logits/values"][1, 4, :2] = arrays["logits/values"][1, 4, 1::-1] + np.array([-1, 0], np.float16)


def too_little_mass(arrays: dict[str, Any]) -> None:
    arrays["logits/log_mass"][0] -= 8.0


def twice(arrays: dict[str, Any]) -> None:
    arrays["logits/ids"][3, 3, 1] = arrays["logits/ids"][3, 3, 0]


def shifted(arrays: dict[str, Any]) -> None:
    arrays["tokens"][:] = np.roll(arrays["tokens"], 1, axis=0)


def infinite_state(arrays: dict[str, Any]) -> None:
    arrays["hidden/mean_scales"][0, 0, 0] = np.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outside, "ids: 300 is outside the vocabulary of 300"),
        (not_finite, "values: not finite"),
        (not_sorted, "values: not in falling order"),
        (too_little_mass, "the sampled entries alone have more mass"),
        (twice, "ids: a token is kept twice"),
        (shifted, "agreement add up to"),
        (infinite_state, "hidden_mean: not finite"),
    ],
)
def test_deep_finds_content_that_cannot_be_true(
    copy: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    rewrite_shard(copy, 1, change)
    assert verify(LocalStore(copy)).is_sound, "bytes are as they were written"
    findings = verify_bytes_and_content(LocalStore(copy))
    assert any(words in fault.problem for fault in findings.faults), findings.faults
    assert {fault.shard for fault in findings.faults} == {1}


def test_deep_finds_targets_that_are_off_by_one(tmp_path: Path) -> None:
    """A synthetic source follows its own distributions: its first choice is the next token often enough to tell."""
    path = make_synthetic_cache(
        tmp_path / "cache", rows=32, seq_len=48, vocab_size=80, top_k=4, samples=8, rows_per_shard=8
    )

    def late(arrays: dict[str, Any]) -> None:
        for name in ("logits/ids", "logits/values", "logits/log_mass"):
            arrays[name][:, 1:] = arrays[name][:, :-1].copy()

    assert verify_bytes_and_content(LocalStore(path)).is_sound
    for shard in range(4):
        rewrite_shard(path, shard, late)
    findings = verify_bytes_and_content(LocalStore(path))
    assert any("targets do not line up with tokens" in fault.problem for fault in findings.faults)


def test_every_kind_of_problem_in_rows_has_its_sentence(sound: Path) -> None:
    cache = open_cache(sound)

    def problems(name: str, change: Callable[[Any], None]) -> list[str]:
        rows = cache.rows(range(4))
        change(getattr(rows, name))
        return list(row_problems(rows, cache.manifest))

    def put(place: Any, value: float) -> Callable[[Any], None]:
        def change(array: Any) -> None:
            array[place] = value

        return change

    assert problems("tokens", put((0, 0), 300)) == ["tokens: 300 is outside the vocabulary of 300"]
    assert problems("hidden_mean", put((0, 0, 0), np.nan)) == ["hidden_mean: not finite"]
    assert problems("log_mass", put((0, 0, 0), np.nan)) == ["log_mass: not finite"]
    part = -cache.manifest.targets.log_mass_step / 3
    assert any("not a multiple of" in words for words in problems("log_mass", put((0, 0, 0), part)))
    assert any("rises with 1/T" in words for words in problems("log_mass", put((0, 0, 0), 20.0)))
    assert any("a sampled logit is above the top_k" in words for words in problems("values", put((0, 0, 4), 1e4)))
    masked = problems("loss_mask", put((0, 0), False))
    assert [words.partition(":")[0] for words in masked] == ["ids", "values", "log_mass"]
