"""Caches that are trained on together: they agree, or one line names both."""

from pathlib import Path
from typing import Any

import pytest

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.run.caches import distillations, open_caches, require_fit, shares_of, view
from student.run.stages import Stage
from student.settings import StageSettings, TrainSettings
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read import cache as reading
from teacher_cache.read.cache import Cache, open_cache
from tests.helpers.golden import changed
from tests.helpers.several_caches import SIZES, make_caches, named
from tests.helpers.small_training import VOCAB, small_settings

OFF = {"alpha_init": 0.7, "frobenius": {"weight_init": 0, "weight_final": 0}}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_caches(tmp_path_factory.mktemp("caches"))


def stage(**chosen: Any) -> Stage:
    return Stage(1, 1, 0, 4, StageSettings(**chosen))


def fit(settings: TrainSettings, caches: tuple[Cache, ...], **chosen: Any) -> None:
    require_fit(settings.of_stage(StageSettings(**chosen)), stage(**chosen), caches)


def test_the_listed_caches_are_opened_or_the_one_that_is_named(paths: list[Path]) -> None:
    listed = small_settings(named(paths))
    assert [cache.path for cache in open_caches(listed, None)] == paths
    (one,) = open_caches(small_settings(), paths[1])
    assert one.path == paths[1]


def test_shares_are_those_given_or_the_numbers_of_rows(paths: list[Path]) -> None:
    listed = small_settings(named(paths))
    caches = open_caches(listed, None)
    assert shares_of(listed, caches) == [0.5, 0.3, 0.2]
    without = small_settings(f"--caches={[{'path': str(path)} for path in paths]}")
    assert shares_of(without, caches) == [20, 13, 9]
    assert shares_of(small_settings(), caches[:1]) == [20]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"vocab_size": VOCAB + 1}, rf"another vocabulary than {{first}} has \({VOCAB + 1}, and {VOCAB}\)"),
        ({"seed": 1}, "another embedding or LM head than {first} has;"),
        ({"dtype": "float32"}, "another embedding or LM head than {first} has;"),
        ({"seq_len": 9}, r"another rows.seq_len than {first} has \(9, and 12\)"),
    ],
)
def test_what_a_student_has_once_must_agree(
    paths: list[Path], tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    second = Path(make_synthetic_cache(tmp_path / "other", **SIZES | {"rows": 8, "top_k": 4} | other))
    with pytest.raises(UserError, match=f"{second}: {words.format(first=paths[0])}.*must have the same"):
        open_caches(small_settings(named([paths[0], second], [1, 1])), None)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("tokenizer", {"sha256": "other"}, "another tokenizer"),
        ("teacher", {"embedding_scale": 5.5}, r"another scale of the embedding than .* has \(5.5, and None\)"),
        ("teacher", {"logit_transform": LogitTransform(cap=30.0)}, "another transform of the logits"),
        ("rows", {"context": "document"}, r"another rows.context than .* has \(document, and row\)"),
    ],
)
def test_what_only_the_manifest_says_must_agree_too(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, section: str, values: dict[str, Any], words: str
) -> None:
    whole = reading.open_cache

    def otherwise(path: str) -> Cache:
        cache = whole(path)
        if Path(path) == paths[1]:
            cache.manifest = changed(cache.manifest, section, **values)
        return cache

    monkeypatch.setattr("student.run.caches.open_cache", otherwise)
    with pytest.raises(UserError, match=f"{paths[1]}: {words}"):
        open_caches(small_settings(named(paths)), None)


def test_the_same_cache_twice_is_refused(paths: list[Path]) -> None:
    with pytest.raises(UserError, match=f"{paths[0]}: the same cache as {paths[0]}; give it once, with both shares"):
        open_caches(small_settings(named([paths[0], paths[1], paths[0]])), None)


def test_a_cache_without_states_does_without_the_frobenius_term(paths: list[Path]) -> None:
    settings = small_settings(named(paths))
    caches = open_caches(settings, None)
    fit(settings, caches)
    assert [wanted.frobenius.enabled for wanted in distillations(settings, caches)] == [True, True, False]
    with pytest.raises(UserError, match=r"exact: no averaged hidden states, which distillation\.frobenius needs"):
        fit(small_settings(), caches[2:])


def test_a_term_that_no_cache_has_states_for_is_refused(paths: list[Path]) -> None:
    settings = small_settings(named(paths, buckets={"distillation": OFF}, sampled={"distillation": OFF}))
    caches = open_caches(settings, None)
    with pytest.raises(UserError, match=r"exact: no averaged hidden states, which distillation\.frobenius needs"):
        fit(settings, caches)


def test_a_cache_has_settings_of_its_own(paths: list[Path]) -> None:
    settings = small_settings(named(paths, sampled={"distillation": OFF}), "--distillation.alpha_init=0.6")
    caches = open_caches(settings, None)
    fit(settings, caches)
    assert [wanted.alpha_init for wanted in distillations(settings, caches)] == [0.6, 0.7, 0.6]
    asked = small_settings(named(paths, exact={"distillation": {"alpha_init": 0.7}}))
    with pytest.raises(UserError, match=r"exact: no averaged .* which caches\.2\.distillation\.frobenius needs"):
        fit(asked, caches)


def test_attention_transfer_asks_nothing_of_the_targets(paths: list[Path]) -> None:
    settings = small_settings(named(paths, sampled={"distillation": {"temperature_init": 9.0}}))
    caches = open_caches(settings, None)
    with pytest.raises(UserError, match="temperature_init"):
        fit(settings, caches)
    fit(settings, caches, train="mixers", loss="transfer")
    of_transfer = settings.of_stage(StageSettings(train="mixers", loss="transfer"))
    assert not of_transfer.trains_map
    assert not any(wanted.frobenius.enabled for wanted in distillations(of_transfer, caches))


def test_a_temperature_is_refused_by_cache_or_given_by_cache(paths: list[Path]) -> None:
    hot = small_settings(named(paths), "--distillation.temperature_init=3")
    caches = open_caches(hot, None)
    words = r"distillation\.temperature_init: .*buckets; .*settings of its own \(caches\.0\.distillation\), or build"
    with pytest.raises(UserError, match=words):
        fit(hot, caches)
    own = {name: {"distillation": {"temperature_init": 1.5}} for name in ("buckets", "sampled")}
    cooler = small_settings(named(paths, **own), "--distillation.temperature_init=3")
    off = ["--distillation.frobenius.weight_init=0", "--distillation.frobenius.weight_final=0"]
    fit(small_settings(named(paths, **own), "--distillation.temperature_init=3", *off), caches)
    assert [wanted.temperature_init for wanted in distillations(cooler, caches)] == [1.5, 1.5, 3.0]
    of_stage = StageSettings.model_validate({"distillation": {"temperature_init": 3.0}})
    with pytest.raises(UserError, match=r"stages\.0\.distillation\.temperature_init: .*buckets"):
        fit(small_settings(named(paths)), caches, distillation=of_stage.distillation)


def test_a_view_that_a_cache_cannot_give_names_it(paths: list[Path]) -> None:
    wanted = small_settings("--targets.top_k=6").targets
    caches = [open_cache(path) for path in paths]
    assert view(caches[0], wanted).layout.top_k == 6
    assert view(caches[0], small_settings().targets) is caches[0]
    with pytest.raises(UserError, match=f"{paths[1]}: targets.top_k 6: the cache holds 4"):
        view(caches[1], wanted)
    with pytest.raises(UserError, match=f"{paths[2]}: targets: the cache is in exact mode"):
        view(caches[2], wanted)
