"""A cache as a data set: in worker processes too, and each chunk decoded once."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cached_distillation.batch import collate
from cached_distillation.dataset import CacheDataset
from cached_distillation.order import EpochSampler
from delta_common.errors import UserError
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache
from tests.helpers.reads import note_thinned
from tests.helpers.tokenizers_for_tests import byte_tokenizer


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_this_process_reads(dataset: CacheDataset, start: str) -> None:
    expected = [dataset[number]["input_ids"] for number in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=5, collate_fn=collate, num_workers=2, multiprocessing_context=start)
    found = torch.cat([batch.input_ids for batch in loader])
    assert torch.equal(found, torch.stack(expected))


def test_a_view_stays_a_view_in_another_process(uneven_path: Path) -> None:
    dataset = CacheDataset(open_cache(uneven_path).view(top_k=3))
    again: CacheDataset = pickle.loads(pickle.dumps(dataset))
    assert again.cache.layout.top_k == 3
    for name, tensor in dataset[4].tensors.items():
        assert torch.equal(again[4].tensors[name], tensor)


def test_rows_of_a_view_are_thinned_one_by_one(uneven_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = open_cache(uneven_path).view(top_k=2)
    whole, thinned = view.rows(range(len(view))), note_thinned(monkeypatch)
    dataset, order = CacheDataset(view), list(range(len(view)))[::-1]
    for number in order:
        assert torch.equal(
            dataset[number].tensors["logits/values"], torch.from_numpy(whole.arrays["logits/values"][number])
        )
    assert thinned == order


def test_in_the_samplers_order_a_chunk_is_decoded_once_an_epoch(
    dataset: CacheDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[tuple[int, ...]] = Counter()
    rows = Cache.rows

    def counting(cache: Cache, indices: NDArray[np.int64], *, hidden: bool, as_stored: bool) -> object:
        decoded[tuple(indices.tolist())] += 1
        assert not hidden
        return rows(cache, indices, hidden=hidden, as_stored=as_stored)

    monkeypatch.setattr(Cache, "rows", counting)
    assert sorted(int(row) for row in EpochSampler(dataset, global_batch=4)) == list(range(len(dataset)))
    for row in EpochSampler(dataset, global_batch=4):
        dataset[row]
    every, step = np.arange(len(dataset)), dataset.cache.manifest.rows.rows_per_chunk
    assert decoded == Counter(tuple(every[first : first + step].tolist()) for first in every[::step])


def test_hidden_states_are_read_where_they_are_asked_for(uneven_path: Path) -> None:
    plain, rich = CacheDataset(uneven_path), CacheDataset(uneven_path, hidden_states=True)
    assert collate([plain[0]]).widened.averaged is None
    found = collate([rich[0]]).widened.averaged
    assert found is not None
    assert torch.equal(found.values, torch.from_numpy(rich.cache.rows([0]).hidden_mean))


def test_rows_end(dataset: CacheDataset) -> None:
    assert torch.equal(dataset[-1]["input_ids"], dataset[len(dataset) - 1]["input_ids"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_what_does_not_fit_is_refused_in_one_line(uneven_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another tokenizer than the student's; build the cache"):
        CacheDataset(uneven_path, tokenizer=byte_tokenizer())
    bare = make_synthetic_cache(
        tmp_path / "bare", rows=4, seq_len=8, vocab_size=32, top_k=4, hidden_size=8, hidden="none"
    )
    with pytest.raises(UserError, match="no averaged hidden states; leave hidden_states out"):
        CacheDataset(bare, hidden_states=True)
    shutil.copytree(uneven_path, tmp_path / "unfinished")
    next((tmp_path / "unfinished" / "commits").iterdir()).unlink()
    with pytest.raises(UserError, match="unfinished"):
        CacheDataset(open_cache(tmp_path / "unfinished", allow_unfinished=True))
    for record in (tmp_path / "unfinished" / "commits").iterdir():
        record.unlink()
    with pytest.raises(UserError, match="unfinished"):
        CacheDataset(open_cache(tmp_path / "unfinished", allow_unfinished=True))
