"""The three caches that all variants share: sampled entries, exact logits, and held-out rows."""

import json
import subprocess
import sys
import time
from pathlib import Path

from cli_common.files import write_atomically
from experiments.plan import Folder, Plan

ROOT = Path(__file__).parents[1]
ROWS_PER_SHARD = 64


def build_caches(folder: Folder, plan: Plan) -> None:
    """Build what is missing, and keep the seconds each took."""
    corpus = Path(plan.corpus) if plan.corpus else folder.path / "corpus"
    if not (corpus / "train.parquet").exists():
        _run(["tools/make_demo_corpus.py", str(corpus)])
    exact = ("--targets.mode=exact", "--hidden.mean=none")
    _build(folder, plan, "sparse", corpus / "train.parquet", plan.rows, ("--hidden.mean=int8",))
    _build(folder, plan, "exact", corpus / "train.parquet", plan.rows, exact)
    _build(folder, plan, "held-out", corpus / "heldout.parquet", plan.held_out, exact)


def _build(folder: Folder, plan: Plan, name: str, source: Path, rows: int, options: tuple[str, ...]) -> None:
    times = folder.path / "build_seconds.json"
    known = json.loads(times.read_text()) if times.exists() else {}
    if name in known:
        return
    began = time.perf_counter()
    out = folder.cache(name)
    _run(
        [
            *("-m", "teacher_cache", "build", "configs/demo.yaml", "--out", str(out)),
            *(f"--teacher.model={plan.teacher}", f"--corpus.source={source}", f"--rows.seq_len={plan.seq_len}"),
            *(f"--rows.count={rows}", f"--compute.rows_per_shard={ROWS_PER_SHARD}", *options),
        ]
    )
    write_atomically(times, json.dumps(known | {name: time.perf_counter() - began}).encode())


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)  # noqa: S603
