"""The experiments at a tiny size: every kind of variant trains, a table says what came out, nothing is done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from e2e_corpus import write_text_corpus

ROOT = Path(__file__).parents[2]
STUDENT = ["model.heads=4", "model.qkv_block_size=4", "training.gradient_accumulation=1"]
KINDS = ["ce", "delta", "online", "exact", "dropped-16", "frobenius", "late-unfreezing", "align-first", "ce-as-long"]


def corpus(folder: Path) -> Path:
    texts = [path.read_text() for path in sorted(write_text_corpus(folder).iterdir())]
    for name, part in (("train", texts[10:]), ("heldout", texts[:10])):
        pq.write_table(pa.table({"text": part}), folder / f"{name}.parquet")
    return folder


def run(folder: Path, teacher: Path, texts: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    sizes = ["--seq-len", "16", "--rows", "16", "--held-out", "4", "--epochs", "2", "--batch", "4", "--seeds", "2"]
    where = ["--teacher", str(teacher), "--corpus", str(texts), "--jobs", "2", "--set", *STUDENT]
    command = [sys.executable, "-m", "experiments", str(folder), *sizes, *where, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False, env=environment)


def test_every_kind_of_variant_is_trained_once_and_tabled(tiny_teacher: Path, tmp_path: Path) -> None:
    texts, folder = corpus(tmp_path), tmp_path / "out"
    done = run(folder, tiny_teacher, texts, "--only", *KINDS)
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in folder.glob("runs/*/*/log.txt"))
    results = {path: json.loads(path.read_text()) for path in folder.glob("runs/*/*/result.json")}
    assert len(results) == 2 * len(KINDS)
    for path, result in results.items():
        assert result["steps"] == 8 or result["variant"] == "ce-as-long"
        assert result["tokens"] == 16 * 4 * result["steps"]
        curve = [json.loads(line) for line in (path.parent / "curve.jsonl").read_text().splitlines()]
        assert [point["step"] for point in curve][-1] == result["steps"]
        assert curve[-1]["cross_entropy"] == result["cross_entropy"]
        assert curve[-1]["kl"] != curve[0]["kl"]
    initial = {(p.parents[1] / p.parent.name / "curve.jsonl").read_text().splitlines()[0] for p in results}
    assert len(initial) == 2, "the same seed starts every variant from the same weights"
    page = (folder / "tables.md").read_text()
    for words in ("teacher online", "the rest dropped", "Gradient norm before clipping", "The teacher itself", "±"):
        assert words in page
    before = {path: path.stat().st_mtime_ns for path in results}
    assert run(folder, tiny_teacher, texts, "--only", *KINDS).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in results} == before
    other = run(folder, tiny_teacher, texts, "--only", "ce", "--epochs", "3")
    assert other.returncode == 2
    assert "results of another size" in other.stderr


def test_unfreezing_trains_the_matrices(tiny_teacher: Path, tmp_path: Path) -> None:
    texts, folder = corpus(tmp_path), tmp_path / "out"
    assert run(folder, tiny_teacher, texts, "--only", "late-unfreezing", "delta", "--seeds", "1").returncode == 0
    found = {
        name: json.loads((folder / "runs" / name / "seed-42" / "result.json").read_text())
        for name in ("delta", "late-unfreezing")
    }
    assert found["late-unfreezing"]["trained"] == found["delta"]["trained"] + 288 * 32
    assert found["late-unfreezing"]["cross_entropy"] != found["delta"]["cross_entropy"]


def test_a_variant_nobody_knows_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "out", tiny_teacher, tmp_path, "--only", "detla")
    assert done.returncode == 2
    assert "--only detla: no such variant" in done.stderr
