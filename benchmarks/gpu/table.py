"""What `gpu.sh` has measured, as a table.

Usage: python -m benchmarks.gpu.table FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

SHOWN = {
    "commands": [
        "cached over ce, 32 rows",
        "cached over ce, 8 rows",
        "online over cached, 8 rows",
        "online in chunks over cached, 32 rows",
    ],
    "build": ["build_over_teacher", "computed_over_teacher", "teacher_share_of_peak", "peak_bytes"],
    "parallel": ["reach", "computed_reach", "peak_bytes"],
    "blocks": [
        "slstm_speedup",
        "recurrence_speedup",
        "mlstm_speedup",
        "mlstm_long_speedup",
        "slstm_error",
        "mlstm_error",
    ],
    "compiled": ["speedup_over_compiled", "error", "error_compiled"],
}


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """(step, figure, value) of every step that ran, failures first."""
    steps = [line.split("\t") for line in (folder / "steps.tsv").read_text().splitlines()]
    found = [(name, "failed", f"exit code {code} after {took} s") for name, code, took in steps if code != "0"]
    for name, figures in SHOWN.items():
        path = folder / f"{name}.json"
        values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        found += [(name, figure, f"{values[figure]:,.4g}") for figure in figures if values.get(figure) is not None]
    return found + command_rows(folder / "commands.json")


def command_rows(path: Path) -> list[tuple[str, str, str]]:
    """(command, figure, value) of `student-train`'s runs."""
    commands = json.loads(path.read_text())["commands"] if path.is_file() else {}
    return [
        (
            name,
            "step, tokens per second, MFU",
            f"{1000 * each['seconds']:.1f} ms, {each['tokens_per_second']:,.0f}, {share_words(each['mfu'])}",
        )
        for name, each in commands.items()
    ]


def share_words(mfu: float | None) -> str:
    """MFU in words: a dash where the card's peak is not known."""
    return "–" if mfu is None else f"{mfu:.1%}"


def main() -> None:
    """Print a table in Markdown."""
    print("| step | figure | value |\n|---|---|---:|")
    for row in rows(Path(sys.argv[1])):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
