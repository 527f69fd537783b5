import re
from typing import Any

import pytest
from pydantic import ValidationError

from teacher_cache.settings import PRESETS, BuildSettings, ComputeSettings, HiddenSettings, TargetSettings


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_the_sizes_that_are_not_set(name: Any) -> None:
    top_k, samples = PRESETS[name]
    found = TargetSettings(preset=name).layout()
    assert (found.top_k, found.samples) == (top_k, samples)
    assert TargetSettings(preset=name, top_k=3).layout().samples == samples
    assert TargetSettings(preset=name, samples=0).layout().top_k == top_k


def test_without_samples_nothing_is_proposed() -> None:
    assert TargetSettings(samples=0).layout().proposal == ()
    assert TargetSettings(samples=5).layout().proposal == TargetSettings().proposal


def test_exact_targets_have_no_samples_and_sparse_ones_no_hidden_state() -> None:
    exact = TargetSettings(mode="exact", exact_hidden="int8").layout()
    assert (exact.samples, exact.proposal, exact.exact_hidden) == (0, (), "int8")
    assert TargetSettings(exact_hidden="int8").layout().exact_hidden == "none"


def test_nodes_span_the_temperatures() -> None:
    nodes = TargetSettings(temperatures=(0.5, 4.0), nodes=7).layout().node_temperatures
    assert len(nodes) == 7
    assert (nodes[0], nodes[-1]) == pytest.approx((4.0, 0.5))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperatures": (2.0, 1.0)}, "temperatures 2 to 1: the first must be above 0 and below the second"),
        ({"temperatures": (0.0, 2.0)}, "temperatures 0 to 2: the first must be above 0 and below the second"),
        ({"temperatures": (1.0, 1.5)}, "proposal: temperature 2 is outside targets.temperatures, 1 to 1.5"),
        ({"proposal": ((1.0, 1.5), (2.0, -0.5))}, "proposal: share -0.5 of temperature 2 must be above 0"),
        ({"proposal": ((1.0, 0.5),)}, "proposal: the shares sum to 0.5, they must sum to 1"),
        ({"top_k": 0}, "top_k"),
        ({"samples": -1}, "samples"),
        ({"nodes": 10}, "nodes"),
        ({"seed": 2**63}, "seed"),
        ({"further": 1}, "further"),
    ],
)
def test_what_cannot_be_built_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        TargetSettings(**fields)


def test_hidden_states_are_recorded_as_they_are_set() -> None:
    found = HiddenSettings(mean="int4", stride=3).layout(None)
    assert (found.mean, found.stride) == ("int4", 3)


@pytest.mark.parametrize(
    ("fields", "precision", "drawn"),
    [
        ({}, "int2", 448),
        ({"preset": "small"}, "int2", 192),
        ({"preset": "none"}, "none", None),
        ({"preset": "lossless"}, "lossless", None),
        ({"mean": "int8"}, "int8", None),
        ({"mean": "int2"}, "int2", 1536),
        ({"mean": "int4", "channels": 100}, "int4", 100),
        ({"preset": "lossless", "channels": 100}, "lossless", 100),
    ],
)
def test_a_preset_of_hidden_states_gives_way_to_explicit_settings(
    fields: dict[str, Any], precision: str, drawn: int | None
) -> None:
    found = HiddenSettings(**fields)
    assert (found.precision, found.drawn(1536)) == (precision, drawn)


def test_a_preset_fits_any_teacher() -> None:
    assert HiddenSettings().drawn(48) == 48, "all of a narrow teacher's channels"
    assert HiddenSettings(preset="small").drawn(32_768) == 256, "as many as the sets need for a wide one"


def test_channels_of_no_states_are_refused() -> None:
    with pytest.raises(ValidationError, match="channels 8: no states are kept; leave it out"):
        HiddenSettings(preset="none", channels=8)


def test_rows_at_once_are_a_number_once_a_build_has_begun() -> None:
    assert ComputeSettings(batch_size=4).rows_at_once == 4
    with pytest.raises(AssertionError):
        _ = ComputeSettings(batch_size="auto").rows_at_once


def test_a_build_needs_a_teacher_and_a_corpus_and_no_more() -> None:
    least = {"teacher": {"model": "m"}, "corpus": {"source": "s"}, "rows": {}}
    settings = BuildSettings.model_validate(least)
    assert settings.out is None
    assert settings.rows.count is None
    for key in ("teacher", "corpus"):
        with pytest.raises(ValidationError, match=key):
            BuildSettings.model_validate({k: v for k, v in least.items() if k != key})
    with pytest.raises(ValidationError, match="frozen"):
        settings.out = "elsewhere"  # type: ignore[misc]


def built(corpus: dict[str, Any], **rows: Any) -> BuildSettings:
    return BuildSettings.model_validate({"teacher": {"model": "x"}, "corpus": {"source": "y", **corpus}, "rows": rows})


def test_what_counts_and_what_is_seen_follow_from_the_kind_of_documents() -> None:
    text, packed = built({}).rows, built({"messages_column": "m"}).rows
    assert (text.loss_on, text.context) == ("all", "row")
    assert (packed.loss_on, packed.context) == ("assistant", "document")
    alone = built({"prompt_column": "p", "completion_column": "c"}, mode="document", loss_on="last").rows
    assert (alone.loss_on, alone.context) == ("last", "row")
    assert built({"messages_column": "m"}, context="document", loss_on="all").rows.loss_on == "all"


@pytest.mark.parametrize(
    ("corpus", "rows", "said"),
    [
        ({"prompt_column": "p"}, {}, "prompt_column and completion_column belong together"),
        ({"messages_column": "m", "prompt_column": "p", "completion_column": "c"}, {}, "two kinds of conversations"),
        ({"chat_template": "file"}, {}, "documents are plain text; set messages_column"),
        ({}, {"loss_on": "assistant"}, "documents are plain text, in which nobody speaks"),
        ({"messages_column": "m"}, {"context": "row"}, "packed conversations would see each other"),
    ],
)
def test_settings_that_contradict_the_kind_of_documents_are_refused(
    corpus: dict[str, Any], rows: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        built(corpus, **rows)
