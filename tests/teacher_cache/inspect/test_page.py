"""The file of a page, without a browser; tests/browser looks at it as a reader does."""

from pathlib import Path

import pytest

from delta_common.errors import UserError
from teacher_cache import Cache
from teacher_cache.inspect.page import parse_rows, write_page
from teacher_cache.inspect.summary import summarize


def test_the_page_is_written_whole_or_not_at_all(long_cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "report.html"
    write_page(long_cache, path, None, None)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 3 * 2**20
    with pytest.raises(UserError, match=r"--html .*sub: cannot be written \(Is a directory\); choose another file"):
        write_page(long_cache, path.parent, None, None)
    with pytest.raises(UserError, match="cannot be written"):
        write_page(long_cache, path / "below.html", None, None)


def test_an_unfinished_cache_has_a_page_too(long_cache: Cache, tmp_path: Path) -> None:
    part = Cache(long_cache.store, long_cache.manifest, {1: long_cache.commits[1]})
    said = write_page(part, tmp_path / "part.html", None, None)
    assert said.startswith(str(tmp_path / "part.html"))
    empty = Cache(long_cache.store, long_cache.manifest, {})
    write_page(empty, tmp_path / "empty.html", [], None)
    assert (tmp_path / "empty.html").read_text(encoding="utf-8").count("No shard is built yet.") == 2


def test_a_page_has_every_array_and_what_is_left_out(long_cache: Cache, tmp_path: Path) -> None:
    said = write_page(long_cache, tmp_path / "page.html", [2, 3], (0, 4))
    assert "2 of 22 rows (others: --rows A,B); positions 0 to 3 of 40" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Shown: 2 of 22 rows" in page
    for array in summarize(long_cache)["arrays"]:
        assert f'<th scope="row">{array}</th>' in page
    assert "$" not in page.split("<script")[0].split("</style>")[1]


def test_rows_are_numbers_separated_by_commas() -> None:
    assert parse_rows(None) is None
    assert parse_rows("0,5,9") == [0, 5, 9]
    with pytest.raises(UserError, match="--rows 1;2: expected row numbers"):
        parse_rows("1;2")
