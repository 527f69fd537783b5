"""Settings become a manifest, and say how they differ from the cache that is there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from delta_common.errors import UserError
from delta_common.machine.matrix_work import Operations
from delta_common.settings_file import load_settings
from teacher_cache.build import request
from teacher_cache.build.job import build
from teacher_cache.build.request import (
    compiling_pays,
    is_already_built,
    make_manifest,
    open_writer,
    recorded_choices,
    require_fit,
    say_what_students_miss,
    settings_differences,
    with_compile,
)
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings, TeacherSettings
from teacher_cache.store.local import LocalStore
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import save_family
from tests.helpers.tiny_teacher import LAYERS


@pytest.fixture(scope="module")
def base(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
        "corpus": {"source": str(write_text_corpus(tmp_path_factory.mktemp("request")))},
        "rows": {"seq_len": 16, "count": 8},
        "compute": {"batch_size": 4, "rows_per_shard": 12},
    }


@pytest.fixture(scope="module")
def teacher(base: dict[str, Any]) -> Teacher:
    return load_teacher(settings(base).teacher)


def settings(base: dict[str, Any], section: str = "rows", **fields: Any) -> BuildSettings:
    return BuildSettings.model_validate(base | {section: base.get(section, {}) | fields})


def test_a_manifest_says_what_was_asked_for(base: dict[str, Any], teacher: Teacher) -> None:
    manifest = make_manifest(settings(base), teacher, {"teacher/a": b"1"})
    assert (manifest.rows.count, manifest.rows.rows_per_chunk) == (8, 6)
    assert manifest.compute == {"batch_size": 4}
    assert manifest.corpus["special_tokens"] == "text"
    assert list(manifest.files) == ["teacher/a"]
    counted = make_manifest(settings(base, count=None), teacher, {})
    assert counted.rows.count > 100, "the whole corpus, counted"


@pytest.mark.parametrize(
    ("section", "fields", "key"),
    [
        ("teacher", {"dtype": "bfloat16"}, "teacher.dtype"),
        ("rows", {"seq_len": 15}, "rows.seq_len"),
        ("targets", {"top_k": 3}, "targets.top_k"),
        ("hidden", {"mean": "lossless"}, "hidden.mean"),
        ("hidden", {"channels": 5}, "hidden.channels"),
        ("compute", {"batch_size": 2}, "compute.batch_size"),
        ("corpus", {"max_documents": 3}, "corpus.max_documents"),
        ("corpus", {"special_tokens": "control"}, "corpus.special_tokens"),
    ],
)
def test_what_other_settings_would_make_is_named(
    base: dict[str, Any], teacher: Teacher, section: str, fields: dict[str, Any], key: str
) -> None:
    existing = make_manifest(settings(base), teacher, {})
    assert settings_differences(existing, settings(base)) == []
    (difference,) = settings_differences(existing, settings(base, section, **fields))
    assert difference.startswith(f"{key}: the cache has ")


def test_a_batch_size_found_once_is_kept(base: dict[str, Any], teacher: Teacher) -> None:
    existing = make_manifest(settings(base), teacher, {})
    auto = settings(base, "compute", batch_size="auto")
    assert recorded_choices(auto, existing).compute.rows_at_once == 4
    assert recorded_choices(auto, None).compute.batch_size == "auto"


H100 = 989e12
QWEN = Operations(position=2 * 1.31e9, counted=2 * 2.3e8)
"""Of Qwen2.5-1.5B, whose layers take an H100 5.3 µs per token, compiled 1.3 µs less: 15 s in 11 million tokens."""


@pytest.mark.parametrize(
    ("device", "operations", "peak", "positions", "pays"),
    [
        ("cuda", QWEN, H100, 10e6, False),
        ("cuda", QWEN, H100, 13e6, True),
        ("cuda", Operations(QWEN.position / 10, QWEN.counted), H100, 13e6, False),
        ("cuda", QWEN, H100 / 8, 2e6, True),
        ("cuda", None, H100, 1e12, False),
        ("cpu", QWEN, H100, 1e12, False),
    ],
)
def test_compiling_pays_on_a_gpu_from_a_length_on(
    device: str, operations: Operations | None, peak: float, positions: float, pays: bool
) -> None:
    assert compiling_pays(torch.device(device), operations, peak, positions) == pays


def test_whether_it_is_compiled_is_decided_by_one_builders_rows(
    base: dict[str, Any], teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(request, "compiling_pays", lambda *known: bool(asked.append(known[-1]) or known[-1] > 100))
    auto = settings(base, "teacher", compile="auto")
    assert with_compile(auto, teacher, 8).teacher.compile is True
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert with_compile(auto, teacher, 8).teacher.compile is False
    assert asked == [8 * 16, 8 * 16 / 2]
    for said in (True, False):
        assert with_compile(settings(base, "teacher", compile=said), teacher, 8).teacher.compile is said


@pytest.mark.parametrize("pays", [True, False])
def test_the_manifest_records_whether_it_was_compiled_and_a_continued_build_keeps_to_it(
    pays: bool, base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    monkeypatch.setattr(request, "compiling_pays", lambda *known: pays)
    auto, out = BuildSettings.model_validate(_in_shards(base, "auto")), tmp_path / "cache"
    build(auto, out, range(1))
    assert open_cache(out, allow_unfinished=True).manifest.compute.get("compiled", False) is pays
    assert len(compiled) == (LAYERS if pays else 0)
    monkeypatch.setattr(request, "compiling_pays", lambda *known: not pays)
    assert build(auto, out).shards_built == 1
    assert len(compiled) == (2 * LAYERS if pays else 0)
    assert build(BuildSettings.model_validate(_in_shards(base, pays)), out).shards_built == 0
    other = BuildSettings.model_validate(_in_shards(base, not pays))
    assert settings_differences(open_cache(out).manifest, other)


def test_another_value_is_refused_in_one_line_with_those_there_are(base: dict[str, Any]) -> None:
    given = ["--teacher.model=x", "--corpus.source=y"]
    assert load_settings(BuildSettings, None, [*given, "--teacher.compile=auto"]).teacher.compile == "auto"
    with pytest.raises(UserError, match=r"--teacher.compile: Input should be True, False or 'auto' \(got 'maybe'\)"):
        load_settings(BuildSettings, None, [*given, "--teacher.compile=maybe"])


def _in_shards(base: dict[str, Any], compiled: bool | str) -> dict[str, Any]:
    return base | {
        "teacher": base["teacher"] | {"compile": compiled},
        "compute": base["compute"] | {"rows_per_shard": 4},
    }


def test_on_a_cpu_nothing_is_compiled_of_itself(base: dict[str, Any], teacher: Teacher) -> None:
    auto = settings(base, "teacher", compile="auto")
    assert make_manifest(auto, teacher, {}).compute == {"batch_size": 4}


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        ("targets", {"top_k": 300}, "targets.top_k 300: larger than the teacher's vocabulary of 257; set it to 257"),
        ("hidden", {"channels": 1}, r"hidden.channels 1: .* have \d+ channels, of which 2 to \d+ can be drawn"),
        ("hidden", {"stride": 17}, "hidden.stride 17: longer than a row of 16 positions.* set it to 16 or less"),
        ("rows", {"seq_len": 129}, "rows.seq_len 129: longer than the teacher's context of 128; set it to 128"),
    ],
)
def test_what_the_teacher_cannot_give_is_refused(
    base: dict[str, Any], teacher: Teacher, section: str, fields: dict[str, Any], said: str
) -> None:
    require_fit(settings(base), teacher)
    with pytest.raises(UserError, match=said):
        require_fit(settings(base, section, **fields), teacher)


def test_a_cache_is_already_built_by_its_own_settings_only_and_when_it_is_finished(
    base: dict[str, Any], tmp_path: Path
) -> None:
    wanted, store = settings(base, "compute", rows_per_shard=4), LocalStore(tmp_path / "cache")
    assert not is_already_built(store, wanted)
    build(wanted, tmp_path / "cache", range(1))
    assert not is_already_built(store, wanted)
    build(wanted, tmp_path / "cache")
    assert is_already_built(store, wanted)
    without_count = wanted.model_copy(update={"rows": wanted.rows.model_copy(update={"count": None})})
    assert is_already_built(store, without_count)
    for section, change in (("rows", {"count": 9}), ("targets", {"top_k": 3})):
        other = getattr(wanted, section).model_copy(update=change)
        assert not is_already_built(store, wanted.model_copy(update={section: other}))
    next((tmp_path / "cache" / "teacher").rglob("*.json")).write_text("damaged")
    assert not is_already_built(store, wanted)


def test_a_builder_waits_for_another_that_tries_batch_sizes_and_says_so(
    base: dict[str, Any], teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "METADATA_PATIENCE", 0.1)
    auto, out = settings(base, "compute", batch_size="auto"), tmp_path / "cache"
    with LocalStore(out).lock("pilot") as held:
        assert held
        with pytest.raises(UserError, match="another builder tries the teacher; run the same command again"):
            open_writer(LocalStore(out), auto, teacher)


def test_the_number_of_rows_that_was_counted_is_kept(
    base: dict[str, Any], teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store = settings(base, count=None), LocalStore(tmp_path / "cache")
    _, writer = open_writer(store, whole, teacher)
    assert writer.bookmarks().length() == writer.manifest.rows.count
    monkeypatch.delattr(CorpusRows, "count")
    assert open_writer(store, whole, teacher)[1].manifest == writer.manifest


@pytest.mark.parametrize(("name", "words"), [("GPT2", "adds to its token embedding"), ("Gemma", "")])
def test_what_a_student_will_not_read_is_said(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_teacher(TeacherSettings(model=str(save_family(name, tmp_path)), dtype="float32"))
    say_what_students_miss(found)
    said = capsys.readouterr().err
    assert (words in said) if words else said == ""
