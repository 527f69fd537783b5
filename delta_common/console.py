"""What commands print: JSON for programs, tables for people."""

import json
import os
import pydoc
import sys
from typing import Any

from rich.console import Console

PIPED_WIDTH = 100
"""Columns of tables that go to a file or a pipe, where COLUMNS does not say otherwise."""


def print_json(value: Any) -> None:
    """A JSON value on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_tables(*tables: Any) -> None:
    """Tables on stdout: through a pager where they are taller than the terminal; plain text in a pipe or file."""
    if not sys.stdout.isatty():
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdigit() and int(columns) else PIPED_WIDTH
        Console(width=width, force_terminal=False, color_system=None).print(*tables, sep="\n")
        return
    console = Console()
    with console.capture() as captured:
        console.print(*tables, sep="\n")
    text = captured.get()
    if text.count("\n") < console.height:
        sys.stdout.write(text)
        return
    os.environ.setdefault("LESS", "-R")
    pydoc.pager(text)
