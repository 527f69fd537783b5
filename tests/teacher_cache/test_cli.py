"""`teacher-cache` as it is called: options that go together, output for people and for programs, exit codes."""

import json
from pathlib import Path

import pytest
import yaml

from delta_common.errors import UserError
from teacher_cache import Cache, open_cache
from teacher_cache.cli import app
from tests.helpers.damageable import contents


@pytest.fixture
def cache(synthetic_cache: Path) -> Cache:
    return open_cache(synthetic_cache)


def run(*words: Path | str) -> int:
    code = app([str(word) for word in words], result_action="return_value", exit_on_error=False)
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "1"], "--rows 1: chooses the rows of a page; give --html"),
        (["--tokens", "0:3"], "--tokens 0:3: belongs to rows"),
        (["--row", "1", "--html", "x.html"], "--row and --html: each shows something else"),
        (["--json", "--html", "x.html"], "--json and --html"),
        (["--html", "x.html", "--rows", "1;2"], "--rows 1;2: expected row numbers"),
        (["--html", "x.html", "--rows", "20"], "--rows 20: the cache has rows 0 to 19"),
        (["--html", "x.html", "--tokens", "5:50"], "--tokens 5:50: a row has positions 0:12"),
    ],
)
def test_options_that_do_not_go_together_are_named(cache: Cache, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("inspect", cache.path, *arguments)


@pytest.mark.parametrize("options", [[], ["--row", "3"], ["--compare", "SELF"]])
def test_every_view_is_printed_as_tables_or_json(
    cache: Cache, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(cache.path) if option == "SELF" else option for option in options]
    assert run("inspect", cache.path, *options) == 0
    tables = capsys.readouterr().out
    assert run("inspect", cache.path, *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    if "--row" in options:
        assert len(said) == 12
        assert "first choices" in tables
    elif options:
        assert said["content"]["common_rows"] == 20
        assert "common rows with equal tokens" in tables
    else:
        assert said["rows_done"] == 20
        assert "teacher cache" in tables


def test_a_page_is_written_and_named(cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", cache.path, "--html", tmp_path / "page.html", "--rows", "1,2") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'page.html'}: ")
    assert (tmp_path / "page.html").exists()


def test_synth_writes_what_verify_calls_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cache"
    sizes = ["--rows", "6", "--seq-len", "8", "--vocab-size", "64", "--hidden-size", "16", "--rows-per-shard", "4"]
    assert run("synth", path, *sizes) == 0
    assert capsys.readouterr().out == f"{path}: 6 rows of 8 positions\n"
    assert run("verify", path, "--deep") == 0
    assert "sound" in capsys.readouterr().out
    (path / "commits/00001.json").unlink()
    assert run("verify", path, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["sound"]
    assert [fault["kind"] for fault in said["faults"]] == ["unbuilt"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = ["--rows", "2", "--seq-len", "4", "--vocab-size", "64", "--hidden-size", "16"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("synth", tmp_path / name, *sizes, "--seed", seed) == 0
    one, same, other = (contents(tmp_path / name) for name in "abc")
    assert one == same
    assert one["tokens/c/0/0"] != other["tokens/c/0/0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no `out` folder is set; add it or give --out PATH"),
        (["--out", "OUT", "--shards", "3"], "--shards 3: expected A:B, such as 0:100"),
        (["--out", "OUT", "--rows.sequence", "3"], "unknown key 'rows.sequence'"),
        (["--out", "OUT", "--rows.seq-len"], "--rows.seq-len: a value is missing"),
    ],
)
def test_a_build_that_cannot_start_says_what_to_do(tmp_path: Path, options: list[str], message: str) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(yaml.safe_dump({"teacher": {"model": "m"}, "corpus": {"source": "c"}, "rows": {"seq_len": 8}}))
    with pytest.raises(UserError, match=message):
        run("build", config, *(str(tmp_path / "out") if option == "OUT" else option for option in options))
    assert not (tmp_path / "out").exists()
