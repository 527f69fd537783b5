"""The teacher's own scores, against its logits in float64; they are written once."""

import json
from pathlib import Path

import pytest
import torch

from experiments.plan import Folder
from experiments.teacher import held_out_scores, write_teacher_scores
from student.evaluate.calibration import bin_sums, calibration_error, equal_width_edges
from student.run.student import frozen_weights_of
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    sizes = {"rows": 20, "seq_len": 6, "vocab_size": 50, "hidden_size": 8, "rows_per_shard": 20, "top_k": 1}
    made.cache("held-out").parent.mkdir()
    make_synthetic_cache(made.cache("held-out"), mode="exact", **sizes)
    return made


def test_scores_are_of_the_whole_distribution(folder: Folder) -> None:
    cache = open_cache(folder.cache("held-out"))
    rows = cache.rows(range(len(cache)))
    assert rows.final_hidden is not None
    states = torch.from_numpy(rows.final_hidden)[torch.from_numpy(rows.loss_mask)].double()
    labels = torch.from_numpy(rows.tokens).long()[:, 1:][torch.from_numpy(rows.loss_mask)]
    logits = states @ frozen_weights_of(cache).head.weight[:50].double().T
    found = held_out_scores(cache)
    assert found.cross_entropy is not None
    assert found.calibration_error is not None
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert found.cross_entropy.value == pytest.approx(float(expected), rel=1e-5)
    confidence, choice = logits.softmax(-1).max(-1)
    bins = bin_sums(confidence.numpy(), (choice == labels).numpy(), equal_width_edges())
    assert found.calibration_error.value == pytest.approx(float(calibration_error(bins)[0]), rel=1e-4)


def test_scores_are_written_once(folder: Folder) -> None:
    write_teacher_scores(folder)
    written = json.loads(folder.teacher_scores.read_text())
    assert written.keys() == {"cross_entropy", "calibration_error"}
    folder.teacher_scores.write_text("kept")
    write_teacher_scores(folder)
    assert folder.teacher_scores.read_text() == "kept"
