"""`teacher-cache verify` and `repair` on a cache of a tiny real model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from delta_common.errors import UserError
from teacher_cache.build.job import build
from teacher_cache.cli import app
from teacher_cache.format.commits import commit_key
from teacher_cache.settings import BuildSettings
from teacher_cache.verify.repair import repair
from tests.helpers.damageable import contents, rewrite_shard
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.tiny_teacher import save_tiny_teacher


@pytest.fixture(scope="module")
def settings(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    corpus = write_text_corpus(tmp_path_factory.mktemp("corpus"))
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(tiny_teacher)},
            "corpus": {"source": str(corpus)},
            "rows": {"seq_len": 32, "count": 20},
            "targets": {"top_k": 4, "samples": 12},
            "hidden": {"mean": "int8"},
            "compute": {"batch_size": 3, "rows_per_shard": 8},
        }
    )


@pytest.fixture(scope="module")
def sound(settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "cache"
    build(settings, path)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def run(*arguments: str) -> int:
    code = app(list(arguments), result_action="return_value")
    assert isinstance(code, int)
    return code


def test_exit_codes_and_json(sound: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", str(sound), "--deep", "--json") == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["sound"]
    assert findings["bytes"] == sum((sound / key).stat().st_size for key in contents(sound) if listed(key))
    (copy / "tokens/c/1/0").unlink()
    assert run("verify", str(copy)) == 1
    assert "tokens/c/1/0" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such folder"):
        run("verify", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no teacher cache here"):
        run("verify", str(tmp_path))


def listed(key: str) -> bool:
    return key != "zarr.json" and not key.startswith("commits/")


def test_an_unfinished_cache_is_not_called_sound(copy: Path) -> None:
    (copy / commit_key(1)).unlink()
    assert run("verify", str(copy)) == 1


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [damage, lose])
@pytest.mark.parametrize(
    ("key", "rebuilt"),
    [
        ("logits/values/c/1/0/0", 1),
        ("commits/00002.json", 1),
        ("zarr.json", 0),
        ("logits/ids/zarr.json", 0),
        ("logits/zarr.json", 0),
        ("teacher/frozen.safetensors", 0),
    ],
)
def test_repair_gives_the_bytes_of_a_sound_build(
    settings: BuildSettings, sound: Path, copy: Path, key: str, rebuilt: int, harm: Callable[[Path], None]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("c/0/**/*") if path.is_file()}
    harm(copy / key)
    report = repair(copy, settings)
    assert report.findings.is_sound
    assert report.shards_built == rebuilt
    assert contents(copy) == contents(sound)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a sound shard was touched"
    if harm is damage:
        assert report.folder is not None
        assert (Path(report.folder) / key).exists(), "what was damaged is kept"


def test_repair_of_a_sound_cache_does_nothing(settings: BuildSettings, sound: Path) -> None:
    report = repair(sound, settings)
    assert (report.quarantined, report.shards_built, report.folder) == ([], 0, None)


def test_repair_with_other_settings_is_refused_before_anything_moves(settings: BuildSettings, copy: Path) -> None:
    damage(copy / "tokens/c/0/0")
    before = contents(copy)
    other = settings.model_copy(update={"targets": settings.targets.model_copy(update={"top_k": 5})})
    with pytest.raises(UserError, match=r"was made otherwise: targets\.top_k: the cache has 4, these settings give 5"):
        repair(copy, other)
    assert contents(copy) == before


def test_the_repair_command(
    settings: BuildSettings, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy / "hidden/mean/c/2/0/0")
    config = tmp_path / "build.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert run("repair", str(copy), "--config", str(config), "--deep") == 0
    printed = capsys.readouterr().out
    assert "1 shards built again" in printed
    assert "sound" in printed


@pytest.mark.parametrize("overrides", [{}, {"dtype": "float32"}])
def test_the_teacher_run_again_agrees(
    settings: BuildSettings, tmp_path: Path, overrides: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = settings.teacher.model_copy(update=overrides)
    path = tmp_path / "cache"
    build(settings.model_copy(update={"teacher": teacher}), path)
    assert run("verify", str(path), "--teacher", "--json") == 0
    measures = json.loads(capsys.readouterr().out)["measures"]
    assert set(measures) == {"teacher/values", "teacher/log_mass", "teacher/hidden_mean"}
    for measure in measures.values():
        assert measure["cached"] == 0, "the same batches on the same machine"
        assert measure["rounding"] > 0


def test_rows_that_the_teacher_does_not_say_are_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def other_text(arrays: dict[str, Any]) -> None:
        arrays["tokens"][:, 5] = (arrays["tokens"][:, 5] + 1) % 250

    for shard in range(3):
        rewrite_shard(copy, shard, other_text)
    assert run("verify", str(copy), "--teacher", "--json") == 1
    assert {fault["kind"] for fault in json.loads(capsys.readouterr().out)["faults"]} == {"teacher"}


def test_another_teacher_is_named(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_tiny_teacher(tmp_path, initializer_range=0.3)
    assert run("verify", str(sound), "--teacher-model", str(other), "--json") == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert [fault["problem"] for fault in faults] == ["its weights are not those that made the cache"]


def test_a_synthetic_cache_has_no_teacher_to_run(synthetic_cache: Path) -> None:
    with pytest.raises(UserError, match="a synthetic cache, there is no teacher to run"):
        run("verify", str(synthetic_cache), "--teacher")
