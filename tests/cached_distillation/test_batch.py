"""A batch of a cache's rows: what a loop of one's own reads of it."""

from dataclasses import replace

import torch

from cached_distillation.batch import CachedBatch, collate
from cached_distillation.dataset import CacheDataset
from student.data.batch import Batch


def in_documents(batch: CachedBatch) -> CachedBatch:
    """The same rows, of a cache whose teacher saw each document by itself; documents begin at 0 and 5."""
    stored = batch.stored
    rows = stored.manifest.rows.model_copy(update={"context": "document"})
    starts = torch.zeros_like(stored.tensors["document_start"])
    starts[:, [0, 5]] = True
    manifest = stored.manifest.model_copy(update={"rows": rows})
    return CachedBatch(replace(stored, manifest=manifest, tensors={**stored.tensors, "document_start": starts}))


def test_labels_are_the_next_tokens_where_they_count(dataset: CacheDataset) -> None:
    row = dataset[3]
    tokens, mask = row["tokens"].long(), row["loss_mask"]
    assert torch.equal(row["input_ids"], tokens[:-1])
    assert torch.equal(row["labels"], tokens[1:].masked_fill(~mask, -100))
    assert 0 < int(mask.sum()) < len(mask)
    assert {"input_ids", "labels", "loss_mask", "logits/ids", "logits/values"} <= set(dict(row))


def test_a_batch_is_what_the_trainer_makes_of_the_same_rows(dataset: CacheDataset) -> None:
    batch = collate([dataset[number] for number in (5, 2, 9)])
    expected = Batch.of(dataset.cache.rows([5, 2, 9]), dataset.cache, torch.device("cpu"))
    assert len(batch) == 3
    assert torch.equal(batch.input_ids, expected.inputs)
    assert torch.equal(batch.loss_mask, expected.loss_mask)
    for name in ("ids", "values", "log_mass"):
        assert torch.equal(getattr(batch.widened.targets, name), getattr(expected.targets, name))
    assert batch.position_ids is None
    assert batch.model_inputs.keys() == {"input_ids"}


def test_positions_count_anew_in_each_document(dataset: CacheDataset) -> None:
    batch = in_documents(collate([dataset[0], dataset[1]]))
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[*range(5), *range(7)]] * 2
    assert batch.model_inputs.keys() == {"input_ids", "position_ids"}


def test_a_batch_moves_whole_and_a_row_of_it_is_a_batch(dataset: CacheDataset) -> None:
    batch = collate([dataset[0], dataset[1]])
    moved = batch.to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in moved.stored.tensors.values()} == {"meta"}
    assert torch.equal(batch.row(1).input_ids, batch.input_ids[1:])
