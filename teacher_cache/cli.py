"""`teacher-cache`: parse, call, print, exit code."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from cli_common.errors import UserError, run_command
from cli_common.progress import duration
from cli_common.settings_file import load_settings

app = App(
    name="teacher-cache",
    help="Run a teacher once over a corpus and keep, per token, what a student needs of it.",
)

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, help="Settings as `--section.key VALUE`.")]


@app.command
def build(config: Path, *overrides: Overrides, out: str | None = None) -> int:
    """Build a cache, or continue one: corpus → rows → teacher → targets → shards.

    Parameters
    ----------
    config
        YAML file with the settings; configs/ has complete examples.
    out
        Folder of the cache, or its URL: s3://BUCKET/PREFIX, gs:// or az://. Overrides `out` in the settings.
    """
    from teacher_cache.build import build as build_cache
    from teacher_cache.settings import BuildSettings

    settings = load_settings(BuildSettings, config, overrides)
    folder = out or settings.out
    if not folder:
        raise UserError(f"{config}: no `out` folder is set; add it or give --out PATH")
    report = build_cache(settings, folder)
    built = f"{report.shards_built} shards built" if report.shards_built else "nothing left to build"
    elsewhere = f", {report.shards_elsewhere} being built by others" if report.shards_elsewhere else ""
    print(f"{report.path}: {built}, {report.shards_found} found{elsewhere}, {duration(report.seconds)}")
    print(f"look at it:  teacher-cache inspect {report.path}")
    return 0


@app.command
def plan(config: Path, *overrides: Overrides, out: str | None = None, json: bool = False) -> int:
    """Say what a build will take - tokens, bytes by array, time, error - from a short calibration; writes nothing.

    Parameters
    ----------
    config
        YAML file with the settings, as for build.
    out
        Folder or URL the cache would go to; its disk's free space is shown.
    json
        Print JSON in place of tables.
    """
    from teacher_cache.inspect import print_json, print_tables
    from teacher_cache.plan import make_plan, render_plan
    from teacher_cache.settings import BuildSettings

    settings = load_settings(BuildSettings, config, overrides)
    made = make_plan(settings, out or settings.out)
    print_json(made.to_json()) if json else print_tables(render_plan(made))
    return 0


@app.command
def inspect(path: str, *, json: bool = False, row: int | None = None, tokens: str | None = None) -> int:
    """Show what a cache holds, or one row of it as text.

    Parameters
    ----------
    path
        Folder or URL of the cache; it may be unfinished.
    json
        Print JSON in place of tables.
    row
        Show this row: each token beside the teacher's first choices.
    tokens
        Positions of the row to show, as A:B.
    """
    from teacher_cache import inspect as view
    from teacher_cache.reader import open_cache

    cache = open_cache(path, allow_unfinished=True)
    if row is None:
        if tokens is not None:
            raise UserError(f"--tokens {tokens}: belongs to one row; give --row N too")
        summary = view.summarize(cache)
        view.print_json(summary) if json else view.print_tables(view.render_summary(summary))
        return 0
    positions = view.view_row(cache, row, *_parse_span(tokens))
    view.print_json([p.to_json() for p in positions]) if json else view.print_tables(view.render_row(positions))
    return 0


@app.command
def verify(
    path: str,
    *,
    deep: bool = False,
    teacher: bool = False,
    teacher_model: str | None = None,
    teacher_rows: int = 32,
    json: bool = False,
) -> int:
    """Check a cache: every object there, in its size, with its digest. Exit code 0 sound, 1 unsound, 2 bad usage.

    Parameters
    ----------
    path
        Folder or URL of the cache.
    deep
        Decode everything too, and check that it can be true.
    teacher
        Run the teacher on some rows too, and compare.
    teacher_model
        Where the teacher is now, if not where the manifest says; implies --teacher.
    teacher_rows
        About so many rows are run through the teacher, spread over the cache.
    json
        Print JSON in place of a table.
    """
    from cli_common.console import print_json, print_tables
    from teacher_cache.store import open_existing
    from teacher_cache.verify import verify as verify_bytes
    from teacher_cache.verify_report import render_findings

    store = open_existing(path)
    if deep:
        from teacher_cache.verify_content import verify_bytes_and_content

        findings = verify_bytes_and_content(store)
    else:
        findings = verify_bytes(store)
    if (teacher or teacher_model) and findings.is_sound:
        from teacher_cache.reader import open_cache
        from teacher_cache.verify_teacher import verify_teacher

        verify_teacher(open_cache(path), findings, model=teacher_model, rows=teacher_rows)
    print_json(findings.to_json()) if json else print_tables(render_findings(findings))
    return 0 if findings.is_sound else 1


@app.command
def repair(path: str, *overrides: Overrides, config: Path, deep: bool = False) -> int:
    """Put damaged shards of a cache into quarantine and build them again, from the settings that made it.

    Parameters
    ----------
    path
        Folder or URL of the cache.
    config
        YAML file with the settings the cache was built with.
    deep
        Find damage by decoding everything too, not by digests alone.
    """
    from cli_common.console import print_tables
    from teacher_cache.repair import repair as repair_cache
    from teacher_cache.settings import BuildSettings
    from teacher_cache.verify_report import render_findings

    report = repair_cache(path, load_settings(BuildSettings, config, overrides), deep=deep)
    if report.folder is not None:
        print(f"{len(report.quarantined)} damaged objects are in {report.folder}; remove it when you have looked at it")
    print(f"{path}: {report.shards_built} shards built again" if report.shards_built else f"{path}: nothing to rebuild")
    print_tables(render_findings(report.findings))
    return 0 if report.findings.is_sound else 1


@app.command
def synth(
    path: str,
    *,
    rows: int = 256,
    seq_len: int = 128,
    vocab_size: int = 8192,
    top_k: int = 8,
    samples: int = 50,
    hidden_size: int = 64,
    rows_per_shard: int = 64,
    seed: int = 0,
) -> int:
    """Write a valid synthetic cache without a teacher: for CI, and for sizing disks.

    Parameters
    ----------
    path
        Folder or URL of the cache.
    rows
        Rows in the cache.
    seq_len
        Positions a row.
    vocab_size
        Tokens in the vocabulary.
    top_k
        Largest logits kept with certainty a position.
    samples
        Most entries drawn from the rest a position; 0 keeps the top k only.
    hidden_size
        Width of the hidden states.
    rows_per_shard
        Rows in a shard.
    seed
        The same seed and sizes give the same bytes.
    """
    from teacher_cache.synthetic import make_synthetic_cache

    made = make_synthetic_cache(
        path,
        rows=rows,
        seq_len=seq_len,
        vocab_size=vocab_size,
        top_k=top_k,
        samples=samples,
        hidden_size=hidden_size,
        rows_per_shard=rows_per_shard,
        seed=seed,
    )
    print(f"{made}: {rows} rows of {seq_len} positions")
    return 0


def _parse_span(tokens: str | None) -> tuple[int, int | None]:
    if tokens is None:
        return 0, None
    first, colon, last = tokens.partition(":")
    try:
        return int(first or 0), int(last) if last else (None if colon else int(first) + 1)
    except ValueError:
        raise UserError(f"--tokens {tokens}: expected A:B, such as 0:40") from None


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command("teacher-cache", _call))


def _call() -> int | None:
    try:
        result: int | None = app(exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UserError(f"{error} (see teacher-cache --help)") from error
    return result
