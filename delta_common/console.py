"""What commands print: JSON for programs, tables for people."""

import json
import os
import pydoc
import sys

from rich.console import Console, RenderableType

PIPED_WIDTH = 100
"""Width of tables printed into a file or pipe, in columns, unless COLUMNS is set."""


def print_json(value: object) -> None:
    """Print a JSON value."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_tables(*tables: RenderableType) -> None:
    """Print tables: through a pager where they are taller than the terminal, as plain text into a pipe or file."""
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
