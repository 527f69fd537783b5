"""A batch of a shard is what the teacher says of its rows, in whatever batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from teacher_cache.build.compute import batches, compute_batch, computed_batches
from teacher_cache.build.request import make_manifest
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.format.manifest import Manifest
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher
from tests.helpers.e2e_corpus import write_text_corpus

ROWS = range(4, 9)


@pytest.fixture(scope="module")
def made(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildSettings, Teacher, Manifest]:
    settings = BuildSettings.model_validate(
        {
            "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
            "corpus": {"source": str(write_text_corpus(tmp_path_factory.mktemp("compute")))},
            "rows": {"seq_len": 16, "count": 16},
            "targets": {"top_k": 4, "samples": 8, "value_dtype": "float32"},
            "compute": {"batch_size": 2, "rows_per_shard": 16},
        }
    )
    teacher = load_teacher(settings.teacher)
    return settings, teacher, make_manifest(settings, teacher, teacher.files())


def filled(made: tuple[BuildSettings, Teacher, Manifest]) -> tuple[ShardArrays, ShardStatistics]:
    settings, teacher, manifest = made
    arrays = ShardArrays.empty(manifest, ROWS)
    arrays.put_rows(CorpusRows(settings, teacher.tokenizer, manifest.tokenizer).take(ROWS))
    arrays.loss_mask[1, 5:] = False
    return arrays, ShardStatistics(manifest.targets)


def test_batches_cover_the_rows_in_order() -> None:
    assert list(batches(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(batches(0, 2)) == []


def test_largest_logits_are_the_teachers_and_masked_positions_hold_zeros(
    made: tuple[BuildSettings, Teacher, Manifest],
) -> None:
    _, teacher, manifest = made
    arrays, statistics = filled(made)
    compute_batch(teacher, arrays, slice(0, 5), statistics)
    tokens = torch.from_numpy(arrays.tokens.astype(np.int64))[:, :-1]
    logits = teacher._model(tokens).logits[..., : manifest.vocab_size]
    counted = arrays.loss_mask
    top = logits.detach().topk(4).values.numpy()
    assert np.abs(arrays.by_name["logits/values"][..., :4] - top)[counted].max() < 1e-5
    for name in ("logits/values", "logits/ids", "logits/log_mass", "hidden/mean_scales"):
        assert not arrays.by_name[name][~counted].any(), name
    assert statistics.sums["agreement"] <= counted.sum()


def test_a_shard_is_the_same_in_any_batches(made: tuple[BuildSettings, Teacher, Manifest]) -> None:
    _, teacher, _ = made
    (one, of_one), (two, of_two) = filled(made), filled(made)
    assert list(computed_batches(teacher, one, 2, of_one)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(computed_batches(teacher, two, 5, of_two)) == [slice(0, 5)]
    assert np.array_equal(one.by_name["logits/ids"], two.by_name["logits/ids"])
    assert np.allclose(one.by_name["logits/values"], two.by_name["logits/values"], atol=1e-5)
    assert of_one.sums == pytest.approx(of_two.sums, rel=1e-5)
