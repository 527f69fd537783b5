"""Channel sizes against the states themselves."""

from pathlib import Path

import numpy as np
import torch

from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.channel_sizes import channel_rms
from teacher_cache.teacher.load import load_teacher
from tests.helpers.tiny_teacher import save_tiny_teacher


def test_sizes_are_those_of_counted_positions_however_rows_are_batched(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path)
    teacher = load_teacher(TeacherSettings(model=str(tmp_path), dtype="float32"))
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, teacher.vocab_size, (11, 9), generator=random)
    counted = torch.rand(11, 9, generator=random) < 0.7
    states = teacher.states(tokens, mean=True).mean
    assert states is not None
    expected = states[counted].double().square().mean(0).sqrt()
    assert np.allclose(channel_rms(teacher, tokens, counted), expected.numpy(), rtol=1e-5)


def test_no_counted_position_gives_zeros(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path)
    teacher = load_teacher(TeacherSettings(model=str(tmp_path), dtype="float32"))
    tokens = torch.ones(2, 5, dtype=torch.int64)
    assert not channel_rms(teacher, tokens, torch.zeros(2, 5, dtype=torch.bool)).any()
