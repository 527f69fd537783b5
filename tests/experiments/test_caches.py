"""The caches that all variants share: what each is built of, and that none is built twice."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import caches
from experiments.caches import build_caches
from experiments.plan import ExperimentPlan, Folder
from teacher_cache.settings import BuildSettings


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, BuildSettings]:
    """The settings of what is built, by name; nothing is."""
    found: dict[str, BuildSettings] = {}

    def build(settings: BuildSettings, out: Path) -> SimpleNamespace:
        found[out.name] = settings
        return SimpleNamespace(seconds=float(len(found)))

    monkeypatch.setattr(caches, "build", build)
    return found


def plan_of(corpus: Path) -> ExperimentPlan:
    corpus.mkdir()
    (corpus / "train.parquet").touch()
    return ExperimentPlan("some/teacher", str(corpus), 16, rows=40, held_out=8, epochs=1, batch=4, options=())


def test_each_cache_has_its_rows_targets_and_text(tmp_path: Path, built: dict[str, BuildSettings]) -> None:
    folder, corpus = Folder(tmp_path / "out"), tmp_path / "corpus"
    folder.settle(plan_of(corpus))
    build_caches(folder, folder.plan())
    assert list(built) == ["sparse", "sparse-default", "sparse-small", "exact", "held-out"]
    assert [settings.rows.count for settings in built.values()] == [40, 40, 40, 40, 8]
    assert [settings.targets.mode for settings in built.values()] == [*["sparse"] * 3, "exact", "exact"]
    kept = [settings.hidden.preset for name, settings in built.items() if name.startswith("sparse")]
    assert kept == ["lossless", "default", "small"]
    assert {built[name].hidden.precision for name in ("exact", "held-out")} == {"none"}
    train, held_out = str(corpus / "train.parquet"), str(corpus / "heldout.parquet")
    assert [settings.corpus.source for settings in built.values()] == [*[train] * 4, held_out]
    assert {(settings.rows.seq_len, settings.teacher.model) for settings in built.values()} == {(16, "some/teacher")}
    times = json.loads((folder.path / "build_seconds.json").read_text())
    assert times == {name: float(number) for number, name in enumerate(built, start=1)}


def test_what_is_built_is_not_built_again(tmp_path: Path, built: dict[str, BuildSettings]) -> None:
    folder = Folder(tmp_path / "out")
    folder.settle(plan_of(tmp_path / "corpus"))
    (folder.path / "build_seconds.json").write_text(
        '{"sparse": 7.5, "sparse-default": 1.5, "sparse-small": 1.5, "held-out": 2.5}'
    )
    build_caches(folder, folder.plan())
    assert list(built) == ["exact"]
    assert json.loads((folder.path / "build_seconds.json").read_text())["sparse"] == 7.5
