"""Settings: frozen models, read from YAML and overridden by `--section.key VALUE`; errors are one line."""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from delta_common.errors import UserError


class FrozenSettings(BaseModel):
    """Base of every settings section: immutable, without unknown keys; field docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


SettingsT = TypeVar("SettingsT", bound=FrozenSettings)


def load_settings(model: type[SettingsT], path: Path | None, overrides: Sequence[str] = ()) -> SettingsT:
    """Settings from a YAML file, or the defaults, overridden by `--section.key VALUE` words.

    Raises `UserError` naming the key, its value and what is allowed.
    """
    values = {} if path is None else _read_yaml(path)
    for key, value in _parse_overrides(overrides):
        _assign(values, key, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, model, source="settings" if path is None else str(path))) from error


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections of `key: value`, got a {type(values).__name__}")
    return values


def _parse_overrides(tokens: Sequence[str]) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    pending = list(tokens)
    while pending:
        option = pending.pop(0)
        if not option.startswith("--") or len(option) == 2:
            raise UserError(f"{option}: expected an option of the form --section.key VALUE")
        key, equals, text = option[2:].partition("=")
        if not equals:
            if not pending:
                raise UserError(f"{option}: a value is missing; write {option} VALUE")
            text = pending.pop(0)
        try:
            pairs.append((key.replace("-", "_"), yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise UserError(f"{option}: {text!r} is not a YAML value: {error}") from error
    return pairs


def _assign(values: dict[str, object], dotted_key: str, value: object) -> None:
    *sections, key = dotted_key.split(".")
    for section in sections:
        inner = values.get(section)
        inner = dict(inner) if isinstance(inner, Mapping) else {}
        values[section] = inner
        values = inner
    values[key] = value


def _one_line(error: ValidationError, model: type[BaseModel], source: str) -> str:
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{source}: unknown key {key!r}; {hint}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if problem["type"] in {"missing", "value_error"} else f" (got {reprlib.repr(problem['input'])})"
    return f"{source}: {key + ': ' if key else ''}{message}{value}{more}"


def _known_keys(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    for section in sections:
        field = model.model_fields.get(section)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return sorted(model.model_fields)
