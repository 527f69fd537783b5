"""Settings from YAML and the command line: laid over each other, refused by the name of the key."""

import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from delta_common.errors import UserError
from delta_common.settings_file import FrozenSettings, as_yaml, help_epilogue, load_settings, settings_help


class Inner(FrozenSettings):
    """A section."""

    size: int = 3
    mode: Literal["fast", "slow"] = "fast"


class Outer(FrozenSettings):
    """The whole."""

    name: str = "x"
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_yaml_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: file\ninner: {size: 5}\n")
    settings = load_settings(Outer, path, ["--inner.size", "7", "--inner.mode=slow"])
    assert settings == Outer(name="file", inner=Inner(size=7, mode="slow"))


def test_an_item_of_a_list_is_overridden_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, "several: [{size: 5}, {size: 6, mode: slow}]\n")
    settings = load_settings(Outer, path, ["--several.1.size", "7"])
    assert settings.several == (Inner(size=5), Inner(size=7, mode="slow"))
    assert load_settings(Outer, path, ["--several", "[{size: 1}]", "--several.0.size=2"]).several == (Inner(size=2),)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "several: [{}]",
            ["--several.1.size", "7"],
            "--several.1.size: there is no item 1; the settings have 1, counted",
        ),
        (
            "several: [{}]",
            ["--several.0.sise=7"],
            r"--several\.0\.sise: unknown key 'several\.0\.sise'; did you mean 'size'",
        ),
        ("several: [{sise: 5}]", [], r"unknown key 'several\.0\.sise'; did you mean 'size'"),
        ("several: [{size: big}]", [], r"several\.0\.size: .*integer.* \(got 'big'\)"),
        ("inner: {sise: 5}", [], "unknown key 'inner.sise'; did you mean 'size'"),
        ("inner: {size: big}", [], r"inner\.size: .*integer.* \(got 'big'\)"),
        ("", ["--inner.mode", "odd"], "inner.mode: .*'fast' or 'slow'"),
        ("- a", [], "expected sections"),
        ("a: [", [], "not readable as YAML"),
        ("", ["--name"], "a value is missing"),
        ("", ["stray"], "expected an option of the form --section.key VALUE"),
    ],
)
def test_bad_settings_name_the_key(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(Outer, write(tmp_path, text), overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: no such settings file"):
        load_settings(Outer, tmp_path / "absent.yaml")


def test_defaults_stand_where_nothing_is_said_and_settings_cannot_change() -> None:
    settings = load_settings(Outer, None, ["--inner.size", "4"])
    assert settings == Outer(inner=Inner(size=4))
    with pytest.raises(ValidationError, match="frozen"):
        settings.name = "y"


def test_several_mistakes_are_counted_and_unlike_keys_listed(tmp_path: Path) -> None:
    path = write(tmp_path, "inner: {odd_one: 1}\nname: [1]\n")
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        load_settings(Outer, path)
    with pytest.raises(UserError, match=r"unknown key 'inner\.odd_one'; known keys: mode, size"):
        load_settings(Outer, write(tmp_path, "inner: {odd_one: 1}"))


def test_dashes_in_options_are_underscores_in_keys() -> None:
    class Dashed(FrozenSettings):
        """A section."""

        top_k: int = 1

    assert load_settings(Dashed, None, ["--top-k", "3"]).top_k == 3


class Needed(FrozenSettings):
    """A section without defaults."""

    source: str
    """Where it comes from."""
    split: str | None = None
    """A part of it."""


class Whole(FrozenSettings):
    """Settings of which some have no default."""

    corpus: Needed
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "settings: corpus missing; give --corpus.source VALUE"),
        (["--inner.sise", "5"], "--inner.sise: no such option; did you mean --inner.size?"),
        (["--size", "5"], "--size: no such option; did you mean --inner.size?"),
        (["--qqq.zzz", "5"], "--qqq.zzz: unknown key 'qqq'; known keys: corpus, inner"),
        (["--inner.size", "big"], "--inner.size: Input should be a valid integer.*(got 'big')"),
        (["--corpus.source", "no"], """(got False); YAML reads it as bool: .*: --corpus.source '"no"'"""),
        (["--corpus.source", "2024_10"], """YAML reads it as int: .*: --corpus.source '"2024_10"'"""),
        (["--corpus.source", "x", "--corpus.split=2024-01-01"], """as date: .*: --corpus.split '"2024-01-01"'"""),
        (["--corpus.source", "@id"], """'@id' is not a YAML value; .*: --corpus.source '"@id"'"""),
        (["--corpus.source", "2024-13-99"], "2024-13-99' is not a YAML value; "),
        (["--corpus.source", "[" * 5000], "is not a YAML value; "),
        (["--inner.size", "5", "c.yaml"], "c.yaml: .*; a settings file comes first"),
    ],
)
def test_an_option_of_the_command_line_is_named_with_a_remedy(words: list[str], message: str) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(UserError, match=pattern):
        load_settings(Whole, None, words)
    if words and words[0].startswith("--"):
        with pytest.raises(UserError, match=pattern):
            load_settings(Whole, words[0], words[1:])


def test_a_text_that_yaml_reads_otherwise_is_named_in_a_file_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.source: .*YAML reads it as bool: if it is text, put it in quotes"):
        load_settings(Whole, write(tmp_path, "corpus: {source: no}"))
    with pytest.raises(UserError, match="nested too deeply"):
        load_settings(Whole, write(tmp_path, "corpus: " + "[" * 5000))


def test_the_quotes_that_a_message_advises_help() -> None:
    assert load_settings(Whole, None, ["--corpus.source", '"no"']).corpus.source == "no"


def test_a_command_line_without_a_file_may_begin_with_an_option() -> None:
    assert load_settings(Whole, "--corpus.source", ["x", "--inner.size=4"]).inner.size == 4
    assert load_settings(Whole, "--corpus.source=s3://x", []).corpus.source == "s3://x"


def test_settings_printed_as_yaml_are_read_back(tmp_path: Path) -> None:
    settings = load_settings(Whole, None, ["--corpus.source", '"no"', "--inner.mode", "slow"])
    assert load_settings(Whole, write(tmp_path, as_yaml(settings))) == settings


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "name: at home")
    assert load_settings(Outer, Path("~/settings.yaml")).name == "at home"


def test_help_has_every_setting_with_its_default() -> None:
    assert settings_help(Whole)[:2] == [
        ("--corpus.source", "required", "Where it comes from."),
        ("--corpus.split", "–", "A part of it."),
    ]
    assert "- `--inner.size` [3] " in help_epilogue(Whole)
