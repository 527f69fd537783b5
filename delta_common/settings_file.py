"""Settings: frozen models, read from YAML and overridden by `--section.key VALUE`; errors are one line."""

import difflib
import json
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from delta_common.errors import UserError
from delta_common.files import expand_home

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class FrozenSettings(BaseModel):
    """Base of every settings section: immutable, without unknown keys; field docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


SettingsT = TypeVar("SettingsT", bound=FrozenSettings)


def load_settings(model: type[SettingsT], path: Path | str | None, overrides: Sequence[str] = ()) -> SettingsT:
    """Settings from a YAML file, or the defaults, overridden by `--section.key VALUE` words.

    `path` may also be the first of those words, where a command line names no file. Raises `UserError` naming the key
    or option, its value and what is allowed.
    """
    if path is not None and str(path).startswith("--"):
        path, overrides = None, [str(path), *overrides]
    values = {} if path is None else _read_yaml(expand_home(path))
    given = _parse_overrides(overrides)
    for key, value, _ in given:
        _assign(values, key, value)
    try:
        return model.model_validate(values)
    except (ValidationError, RecursionError) as error:
        source = "settings" if path is None else str(path)
        if isinstance(error, RecursionError):
            raise UserError(f"{source}: nested too deeply") from error
        raise UserError(_one_line(error, model, source, {key: text for key, _, text in given})) from error


def as_yaml(settings: FrozenSettings) -> str:
    """The settings as YAML that `load_settings` reads."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip("\n")


def settings_help(model: type[BaseModel], prefix: str = "--") -> list[tuple[str, str, str]]:
    """Every setting as (option, default, what it is)."""
    lines: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, FrozenSettings):
            lines += settings_help(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else "–" if field.default is None else str(field.default)
            lines.append((f"{prefix}{name}", default, field.description or ""))
    return lines


def help_epilogue(model: type[BaseModel]) -> str:
    """Every setting as Markdown for the end of a command's help."""
    lines = [f"- `{option}` [{default}] {words}" for option, default, words in settings_help(model)]
    return "Settings, and their defaults:\n" + "\n".join(lines)


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections of `key: value`, got a {type(values).__name__}")
    return values


def _parse_overrides(tokens: Sequence[str]) -> list[tuple[str, object, str]]:
    """(key, value, its text) of each `--section.key VALUE`."""
    pairs: list[tuple[str, object, str]] = []
    pending = list(tokens)
    while pending:
        option = pending.pop(0)
        if not option.startswith("--") or len(option) == 2:
            raise UserError(
                f"{option}: expected an option of the form --section.key VALUE; a settings file comes first"
            )
        name, equals, text = option.partition("=")
        if not equals:
            if not pending:
                raise UserError(f"{option}: a value is missing; write {option} VALUE")
            text = pending.pop(0)
        try:
            pairs.append((name[2:].replace("-", "_"), yaml.safe_load(text), text))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{name}: {reprlib.repr(text)} is not a YAML value; {_quoted(name, text)}") from error
    return pairs


def _quoted(option: str, text: str) -> str:
    """The advice to put a text in quotes for YAML, and those in quotes for the shell."""
    return f"if it is text, put it in quotes: {option} {shlex.quote(json.dumps(text, ensure_ascii=False))}"


def _assign(values: dict[str, object], dotted_key: str, value: object) -> None:
    key, *inner = dotted_key.split(".")
    values[key] = _assigned(values.get(key), inner, value, dotted_key)


def _assigned(held: object, keys: Sequence[str], value: object, option: str) -> object:
    """What is held, with the value where the keys lead: by name into sections, by number into a list of them."""
    if not keys:
        return value
    key, *inner = keys
    if isinstance(held, list) and key.isdecimal():
        number = int(key)
        if number >= len(held):
            raise UserError(f"--{option}: there is no item {key}; the settings have {len(held)}, counted from 0")
        return [*held[:number], _assigned(held[number], inner, value, option), *held[number + 1 :]]
    section = dict(held) if isinstance(held, Mapping) else {}
    return {**section, key: _assigned(section.get(key), inner, value, option)}


ORDER = {"extra_forbidden": 0, "missing": 2}


def _one_line(error: ValidationError, model: type[BaseModel], source: str, given: Mapping[str, str]) -> str:
    """The first fault, unknown keys before others and missing ones last; `given` has each option's text by its key."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: ORDER.get(problem["type"], 1))
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"{_unknown(model, location, source, given)}{more}"
    if problem["type"] == "missing":
        return f"{source}: {_missing(model, problems)}"
    place = f"--{key}: " if key in given else f"{source}: {key + ': ' if key else ''}"
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if problem["type"] == "value_error" else f" (got {reprlib.repr(problem['input'])})"
    return f"{place}{message}{value}{_quotes(problem, key, given)}{more}"


def _missing(model: type[BaseModel], problems: Sequence["ErrorDetails"]) -> str:
    missing = [".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "missing"]
    required = [option for option, default, _ in settings_help(model) if default == "required"]
    options = [o for o in required if any(f"{o}.".startswith(f"--{key}.") for key in missing)]
    return f"{' and '.join(missing)} missing; give {' and '.join(f'{option} VALUE' for option in options)}"


def _unknown(model: type[BaseModel], location: Sequence[str], source: str, given: Mapping[str, str]) -> str:
    key, known = ".".join(location), _known_keys(model, location[:-1])
    option = next((name for name in given if f"{name}.".startswith(f"{key}.")), None)
    if option is not None:
        in_list = any(part.isdecimal() for part in location)
        options = [] if in_list else [name for name, _, _ in settings_help(model)]
        close = difflib.get_close_matches(f"--{option}", options, n=1)
        if close:
            return f"--{option}: no such option; did you mean {close[0]}?"
        source = f"--{option}"
    close = difflib.get_close_matches(location[-1], known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{source}: unknown key {key!r}; {hint}"


def _quotes(problem: "ErrorDetails", key: str, given: Mapping[str, str]) -> str:
    """What to do where YAML reads a text as something else: `no` as false, `2024_10` as a number."""
    value = problem["input"]
    if problem["type"] != "string_type" or value is None or isinstance(value, list | dict):
        return ""
    advice = _quoted(f"--{key}", given[key]) if key in given else "if it is text, put it in quotes"
    return f"; YAML reads it as {type(value).__name__}: {advice}"


def _known_keys(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    for section in sections:
        if section.isdecimal():  # the place in a list of sections
            continue
        field = model.model_fields.get(section)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return sorted(model.model_fields)
