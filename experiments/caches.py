"""The caches that all variants share: sampled entries with more or less of the states, exact logits, held-out rows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

from delta_common.files import write_atomically
from delta_common.settings_file import load_settings
from experiments.plan import ExperimentPlan, Folder
from teacher_cache.build.job import build
from teacher_cache.settings import BuildSettings

ROOT = Path(__file__).parents[1]
ROWS_PER_SHARD = 64
STATES: dict[str, Literal["lossless", "default", "small"]] = {
    "sparse": "lossless",
    "sparse-default": "default",
    "sparse-small": "small",
}
"""What caches of sampled entries keep of the averaged hidden states, by their names."""


def build_caches(folder: Folder, plan: ExperimentPlan) -> None:
    """Build the caches that are missing, and record the seconds each took."""
    corpus = Path(plan.corpus) if plan.corpus else folder.path / "corpus"
    if not (corpus / "train.parquet").exists():
        subprocess.run([sys.executable, "tools/make_demo_corpus.py", str(corpus)], cwd=ROOT, check=True)  # noqa: S603
    exact = ("--targets.mode=exact", "--hidden.mean=none")
    for name, preset in STATES.items():
        _build(folder, plan, name, corpus / "train.parquet", plan.rows, (f"--hidden.preset={preset}",))
    _build(folder, plan, "exact", corpus / "train.parquet", plan.rows, exact)
    _build(folder, plan, "held-out", corpus / "heldout.parquet", plan.held_out, exact)


def _build(folder: Folder, plan: ExperimentPlan, name: str, source: Path, rows: int, options: tuple[str, ...]) -> None:
    times = folder.path / "build_seconds.json"
    known = json.loads(times.read_text()) if times.exists() else {}
    if name in known:
        return
    size = (
        "--teacher.carry=head",
        f"--rows.seq_len={plan.seq_len}",
        f"--rows.count={rows}",
        f"--compute.rows_per_shard={ROWS_PER_SHARD}",
    )
    source_and_teacher = (f"--corpus.source={source}", f"--teacher.model={plan.teacher}")
    settings = load_settings(BuildSettings, ROOT / "configs" / "demo.yaml", [*size, *source_and_teacher, *options])
    report = build(settings, folder.cache(name))
    write_atomically(times, json.dumps(known | {name: report.seconds}).encode())
