"""Settings from YAML and the command line: laid over each other, refused by the name of the key."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from delta_common.errors import UserError
from delta_common.settings_file import FrozenSettings, load_settings


class Inner(FrozenSettings):
    """A section."""

    size: int = 3
    mode: Literal["fast", "slow"] = "fast"


class Outer(FrozenSettings):
    """The whole."""

    name: str = "x"
    inner: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_yaml_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: file\ninner: {size: 5}\n")
    settings = load_settings(Outer, path, ["--inner.size", "7", "--inner.mode=slow"])
    assert settings == Outer(name="file", inner=Inner(size=7, mode="slow"))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
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
