from pathlib import Path
from typing import Literal

import pytest

from delta_common.errors import EXIT_USAGE, UserError, run_command
from delta_common.progress import byte_size, duration
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


def test_a_user_error_is_one_line_and_exit_two(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError("first\nsecond")

    assert run_command("tool", fail) == EXIT_USAGE
    assert capsys.readouterr().err == "tool: error: first second\n"


def test_sizes_and_durations_as_a_person_says_them() -> None:
    assert [duration(s) for s in (8, 200, 18420, 183600)] == ["8 s", "3 min 20 s", "5 h 07 min", "2 d 3 h"]
    assert [byte_size(b) for b in (812, 3.4 * 2**20)] == ["812 B", "3.4 MiB"]
