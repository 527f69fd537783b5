"""What commands print: JSON for programs, tables for people."""

import json
from typing import Any

from rich.console import Console


def print_json(value: Any) -> None:
    """A JSON value on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_tables(*tables: Any) -> None:
    """Tables on stdout, as wide as the terminal."""
    Console().print(*tables, sep="\n")
