"""Caches of held-out text: comparable with what is trained on, each once."""

from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.evaluate.caches import open_held_out
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache
from tests.helpers.several_caches import SIZES, make_caches


def test_they_are_those_of_any_teacher_trained_on(tmp_path: Path) -> None:
    """The second one trained on has another teacher; the held-out cache is that teacher's."""
    paths = make_caches(tmp_path)
    other = Path(make_synthetic_cache(tmp_path / "other", **SIZES, rows=5, top_k=4, seed=3))
    trained_on = [open_cache(path) for path in (paths[0], other)]
    held_out = open_held_out([str(paths[1]), str(other)], trained_on)
    assert [cache.path for cache in held_out] == [paths[1], other]
    with pytest.raises(UserError, match=f"evaluation.cache {other}: another teacher than {paths[0]}; build both"):
        open_held_out([str(other)], trained_on[:1])
    with pytest.raises(UserError, match=f"evaluation.caches: {other} is there twice; name each cache once"):
        open_held_out([str(other), str(paths[1]), str(other)], trained_on)
    assert open_held_out([], trained_on) == ()
