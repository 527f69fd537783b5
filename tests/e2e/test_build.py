"""`teacher-cache build` on a tiny real model and real files, as a user calls it."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.cli import app
from teacher_cache.corpus import files
from teacher_cache.format.commits import commit_key
from teacher_cache.settings import BuildSettings

SEQ_LEN = 24


def write_corpus(folder: Path, documents: int = 40) -> Path:
    texts = [f"Document {i}. " + "The quick brown fox jumps over it. " * (i % 4) for i in range(documents)]
    path = folder / "corpus.parquet"
    pq.write_table(pa.table({"text": texts, "id": [f"doc-{i}" for i in range(documents)]}), path)
    return path


@pytest.fixture
def config(tiny_teacher: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
        "corpus": {"source": str(write_corpus(tmp_path))},
        "rows": {"seq_len": SEQ_LEN, "count": 20},
        "targets": {"top_k": 8, "samples": 16, "value_dtype": "float32"},
        "compute": {"batch_size": 3, "rows_per_shard": 8},
    }


def run(config: dict[str, Any], out: Path, *overrides: str) -> Path:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    build(load_settings(BuildSettings, path, overrides), out)
    return out


def objects(cache: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(cache.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(cache)), path.read_bytes()


def test_cached_rows_are_what_the_model_says(config: dict[str, Any], tiny_teacher: Path, tmp_path: Path) -> None:
    cache = open_cache(run(config, tmp_path / "cache"))
    rows = cache.rows(range(20))
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits[..., :257].double()
    assert rows.loss_mask.all()
    assert rows.values is not None
    assert np.abs(rows.values[..., :8] - logits.topk(8).values.numpy()).max() < 1e-4
    for temperature in (1.0, 1.4, 2.0):
        targets = cache.targets(range(20), temperature=temperature)
        used = targets.weights > 0
        exact = torch.softmax(logits / temperature, -1)
        chances = exact.gather(-1, torch.from_numpy(targets.ids.astype(np.int64))).numpy()
        assert np.abs(targets.probabilities - chances)[used].max() < 2e-3
        assert np.abs(targets.entropy - torch.special.entr(exact).sum(-1).numpy()).max() < 0.05
        assert abs(targets.weights.sum(-1).mean() - 1) < 0.05


def test_another_batch_size_gives_the_same_rows_up_to_rounding(config: dict[str, Any], tmp_path: Path) -> None:
    first = open_cache(run(config, tmp_path / "a")).rows(range(20))
    other = open_cache(run(config, tmp_path / "b", "--compute.batch_size", "8")).rows(range(20))
    assert np.array_equal(first.tokens, other.tokens)
    for name, tolerance in (("values", 1e-5), ("log_mass", 2.0**-12), ("hidden_mean", 1e-5)):
        one, two = (getattr(rows, name) for rows in (first, other))
        if name == "values":  # a sample may fall on a neighbour when probabilities round apart
            one, two = one[..., :8], two[..., :8]
        assert np.abs(one - two).max() < tolerance * max(1.0, np.abs(one).max()), name


def test_exact_mode_gives_back_the_models_distribution(
    config: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    cache = open_cache(run(config, tmp_path / "cache", "--targets.mode", "exact", "--hidden.mean", "none"))
    targets = cache.targets([3], temperature=1.7)
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(cache[3].tokens.astype(np.int64))[None, :-1]).logits[..., :257]
    exact = torch.softmax(logits / 1.7, -1).gather(-1, torch.from_numpy(targets.ids.astype(np.int64))).numpy()
    assert np.abs(targets.weights - exact).max() < 1e-5


def test_with_document_context_no_position_sees_another_document(
    config: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    joined = open_cache(run(config, tmp_path / "joined")).rows(range(20))
    cache = open_cache(run(config, tmp_path / "apart", "--rows.context", "document"))
    rows = cache.rows(range(20))
    assert np.array_equal(rows.tokens, joined.tokens)
    assert rows.values is not None
    assert joined.values is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    behind_a_start = 0
    for row in range(20):
        starts = [0, *np.flatnonzero(rows.document_start[row, 1:]) + 1, SEQ_LEN]
        for first, last in itertools.pairwise(starts):
            tokens = torch.from_numpy(rows.tokens[row, first:last].astype(np.int64))[None]
            with torch.no_grad():
                top = model(tokens).logits[0, :, :257].topk(8).values.numpy()
            assert np.abs(rows.values[row, first:last, :8] - top).max() < 1e-4
            if first:
                behind_a_start += 1
                assert np.abs(joined.values[row, first:last, :8] - top).max() > 1e-2
    assert behind_a_start > 5


def test_document_rows_mask_padding_and_keep_zeros_there(config: dict[str, Any], tmp_path: Path) -> None:
    config["rows"] = {"seq_len": 64, "mode": "document"}
    cache = open_cache(run(config, tmp_path / "cache"))
    rows = cache.rows(range(len(cache)))
    assert len(cache) == 40
    assert 0 < rows.loss_mask.sum() < rows.loss_mask.size
    for array in (rows.ids, rows.values, rows.log_mass, rows.hidden_mean):
        assert array is not None
        assert not array[~rows.loss_mask].any()
    assert cache.commits[0].positions == rows.loss_mask[:8].sum()


def test_a_build_of_a_whole_corpus_that_goes_on_neither_counts_nor_reads_it_again(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["corpus"] = {"source": str(write_corpus(tmp_path, documents=600))}
    config["rows"] = {"seq_len": SEQ_LEN}
    cache = run(config, tmp_path / "cache")
    sound = dict(objects(cache))
    manifest = open_cache(cache).manifest
    last = manifest.shard_count - 1
    assert manifest.rows.count > 500
    read: list[str] = []
    make = files.make_document

    def watched(*positional: Any, place: str, **named: Any) -> Any:
        read.append(place)
        return make(*positional, place=place, **named)

    monkeypatch.setattr(files, "make_document", watched)
    (cache / commit_key(last)).unlink()
    run(config, cache)
    assert dict(objects(cache)) == sound
    assert 0 < len(read) < 40


def test_a_finished_build_is_found_without_loading_the_teacher(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, tmp_path / "cache")
    monkeypatch.delattr("teacher_cache.build.job.load_teacher")
    run(config, tmp_path / "cache")


def test_rows_without_a_count_are_counted(config: dict[str, Any], tmp_path: Path) -> None:
    del config["rows"]["count"]
    cache = open_cache(run(config, tmp_path / "cache"))
    rows = cache.rows(range(len(cache)))
    assert rows.loss_mask[:-1].all()
    assert rows.loss_mask[-1].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--targets.top_k", "258"], r"targets\.top_k 258: larger than the teacher's vocabulary of 257"),
        (["--rows.seq_len", "129"], r"rows\.seq_len 129: longer than the teacher's context of 128"),
        (["--rows.count", "100000"], r"ends after \d+ rows, rows\.count asks for more; set rows\.count to"),
        (["--corpus.text_column", "body"], r"(?s)body.*text"),
        (["--corpus.source", "absent.parquet"], r"absent\.parquet"),
        (["--targets.temperatures", "[0, 2]"], r"temperatures 0 to 2: the first must be above 0"),
        (["--targets.proposal", "[[1.0, 0.5], [2.0, 0.4]]"], r"the shares sum to 0\.9, they must sum to 1"),
        (["--targets.proposal", "[[3.0, 1.0]]"], r"temperature 3 is outside targets\.temperatures, 1 to 2"),
        (["--hidden.stride", "0"], r"hidden\.stride"),
        (["--targets.topk", "3"], r"--targets\.topk: no such option; did you mean --targets\.top_k\?"),
        (["--compute.batch_size", "many"], r"compute\.batch_size"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    config: dict[str, Any], tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "cache", *overrides)


def test_another_setting_is_refused_and_nothing_lost(config: dict[str, Any], tmp_path: Path) -> None:
    cache = run(config, tmp_path / "cache")
    before = dict(objects(cache))
    with pytest.raises(UserError, match=r"targets\.top_k: the cache has 8, these settings give 9"):
        run(config, cache, "--targets.top_k", "9")
    assert dict(objects(cache)) == before


def test_the_command_line_builds_and_inspects(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "build.yaml"
    path.write_text(yaml.safe_dump(config))
    cache = str(tmp_path / "cache")
    app(["build", str(path), "--out", cache, "--rows.count", "9"], result_action="return_value")
    app(["inspect", cache, "--json"], result_action="return_value")
    printed = capsys.readouterr().out
    summary = json.loads(printed[printed.index("{") :])
    assert summary["rows_done"] == 9
    assert summary["tokens"] == 9 * SEQ_LEN
    assert summary["shards"] == {"done": 2, "planned": 2}
    stored = sum(p.stat().st_size for p in Path(cache).rglob("c/*") if p.is_file())
    stored += sum(p.stat().st_size for p in Path(cache).rglob("c/**/*") if p.is_file() and p.parent.name != "c")
    assert summary["bytes"] == stored
    app(["inspect", cache, "--row", "2", "--tokens", "0:3", "--json"], result_action="return_value")
    views = json.loads(capsys.readouterr().out)
    assert [view["position"] for view in views] == [0, 1, 2]
    assert views[0]["following"] == views[1]["token"]
    app(["inspect", cache], result_action="return_value")
    assert "9 of 9, packed, 24 positions each" in capsys.readouterr().out
