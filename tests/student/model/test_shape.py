"""The student's shape: presets, and options that do not fit the teacher's width."""

from typing import Any

import pytest

from delta_common.errors import UserError
from student.model.shape import StudentSettings, StudentShape, TeacherDims, resolve_shape

QWEN = TeacherDims(hidden_size=1536, num_layers=28, num_heads=12)


WIDTH = 32


def small_shape(**values: Any) -> StudentShape:
    settings = StudentSettings(**{"blocks": 3, "heads": 4, "qkv_block_size": 8, **values})
    return resolve_shape(settings, TeacherDims(WIDTH, 4, 4))


def test_presets_resolve_to_the_papers_table() -> None:
    paper = resolve_shape(StudentSettings(), QWEN)
    assert (paper.blocks, paper.slstm_at, paper.heads) == (6, (0, 2, 4), 16)
    heuristic = resolve_shape(StudentSettings(preset="heuristic"), QWEN)
    assert (heuristic.blocks, heuristic.slstm_at, heuristic.heads) == (14, tuple(range(0, 13, 2)), 12)
    smollm = resolve_shape(StudentSettings(preset="heuristic"), TeacherDims(576, 30, 9))
    assert (smollm.blocks, smollm.heads, smollm.inner_size) == (15, 12, 1152)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heads": 5}, "--model.heads 5 .* heads that do: 1, 2, 4, 8, 16$"),
        ({"heads": 32}, "--model.heads 32 .* heads of 2 or more"),
        ({"qkv_block_size": 7}, "--model.qkv_block_size 7 .* sizes that do: 1, 2, 4, 8, 16, 32, 64$"),
        ({"blocks": 2, "slstm_at": (0, 2)}, r"--model.slstm_at \[0, 2\]: the student's blocks are 0 to 1"),
    ],
)
def test_a_shape_that_does_not_fit_names_the_option_and_what_fits(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small_shape(**values)


def test_a_preset_that_does_not_fit_the_teacher_says_so() -> None:
    with pytest.raises(UserError, match=r"--model\.heads 16 does not divide the teacher's width 900"):
        resolve_shape(StudentSettings(), TeacherDims(900, 12, 10))
