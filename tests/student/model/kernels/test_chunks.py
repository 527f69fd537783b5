"""Sequences in chunks, documents as masks, and the memory at the borders against one step after another."""

import torch

from student.model.kernels.chunks import NOTHING, border_memories, documents_of, in_chunks


def test_a_sequence_is_cut_into_equal_chunks_filled_up_at_the_end() -> None:
    chunks = in_chunks(torch.arange(5.0).reshape(1, 1, 5), 2, -1.0)
    assert chunks.tolist() == [[[[0, 1, 2], [3, 4, -1]]]]


def test_documents_are_masks_of_who_sees_whom() -> None:
    masks = documents_of(torch.tensor([False, True, False]).reshape(1, 1, 1, 3))
    assert masks.together[0, 0, 0].tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert masks.first[0, 0, 0].tolist() == [True, False, False]
    assert masks.last[0, 0, 0].tolist() == [False, True, True]


def test_memories_at_the_borders_are_those_of_single_steps() -> None:
    random = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 1, 1, 6, 3, generator=random, dtype=torch.float64)
    i, log_forget = torch.randn(2, 1, 1, 6, generator=random, dtype=torch.float64) - 1
    added_up = in_chunks(log_forget, 2, 0.0).cumsum(-1)
    keys, values, gates = in_chunks(k, 2, 0.0), in_chunks(v, 2, 0.0), in_chunks(i, 2, NOTHING)
    found = border_memories(keys, values, gates, added_up, None, None, log_scale=-0.5)
    c, n = k.new_zeros(1, 1, 3, 3), k.new_zeros(1, 1, 3)
    for t in range(6):
        kept, key = log_forget[:, :, t].exp(), (i[:, :, t] - 0.5).exp()[..., None] * k[:, :, t]
        c = kept[..., None, None] * c + key[..., None] * v[:, :, t, None]
        n = kept[..., None] * n + key
        if t % 3 == 2:
            scale = found.m[:, :, t // 3 + 1].exp()
            torch.testing.assert_close(found.c[:, :, t // 3 + 1] * scale[..., None, None], c)
            torch.testing.assert_close(found.n[:, :, t // 3 + 1] * scale[..., None], n)
