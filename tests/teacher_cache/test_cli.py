"""`teacher-cache` as it is called: options that go together, output for people and for programs, exit codes."""

import json
from pathlib import Path

import pytest
import yaml

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from teacher_cache import Cache, open_cache
from teacher_cache.build import job
from teacher_cache.cli import app, main
from teacher_cache.settings import BuildSettings
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
        ([], "out: no folder is set; give --out PATH"),
        (["--out", "OUT", "--shards", "3"], "--shards 3: expected A:B, such as 0:100"),
        (["--out", "OUT", "--rows.sequence", "3"], "--rows.sequence: no such option; did you mean --rows.seq_len"),
        (["--out", "OUT", "--rows.seq-len"], "--rows.seq-len: a value is missing"),
    ],
)
def test_a_build_that_cannot_start_says_what_to_do(tmp_path: Path, options: list[str], message: str) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(yaml.safe_dump({"teacher": {"model": "m"}, "corpus": {"source": "c"}, "rows": {"seq_len": 8}}))
    with pytest.raises(UserError, match=message):
        run("build", config, *(str(tmp_path / "out") if option == "OUT" else option for option in options))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[BuildSettings, str]]:
    """What would have been built, and where."""
    given: list[tuple[BuildSettings, str]] = []

    def build(settings: BuildSettings, out: str, shards: range | None) -> job.BuildReport:
        given.append((settings, out))
        raise UserError("not built")

    monkeypatch.setattr(job, "build", build)
    return given


def test_a_build_needs_no_settings_file(asked: list[tuple[BuildSettings, str]]) -> None:
    words = ["--teacher.model", "m", "--corpus.source=s3://b/c", "--out", "o", "--targets.temperatures", "[1, 2]"]
    with pytest.raises(UserError, match="not built"):
        run("build", *words)
    ((settings, out),) = asked
    assert (settings.teacher.model, settings.corpus.source, out) == ("m", "s3://b/c", "o")
    with pytest.raises(UserError, match=r"teacher missing; give --teacher.model VALUE"):
        run("build", "--corpus.source", "c", "--out", "o")


def test_config_prints_the_settings_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "build.yaml"
    file.write_text("teacher: {model: m}\ncorpus: {source: c}\n")
    assert run("config", file, "--rows.count", "7") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["teacher"]["model"], said["rows"]["count"], said["targets"]["preset"]) == ("m", 7, "default")
    assert BuildSettings.model_validate(said) == load_settings(BuildSettings, file, ["--rows.count", "7"])


@pytest.mark.parametrize("command", ["build", "plan", "repair", "config"])
def test_help_of_what_takes_settings_lists_them(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["teacher-cache", command, "--help"])
    monkeypatch.setattr(app[command], "help_epilogue", None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "--teacher.model [required]" in said
    assert "--rows.seq_len [512]" in said


def test_a_home_folder_is_found_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sizes = ["--rows", "4", "--seq-len", "8", "--vocab-size", "64", "--top-k", "2", "--samples", "0"]
    assert run("synth", "~/cache", *sizes) == 0
    assert run("inspect", "~/cache", "--html=~/page.html") == 0
    assert {found.name for found in tmp_path.iterdir()} == {"cache", "page.html"}
