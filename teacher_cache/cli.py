"""The command line of `teacher-cache`: build, plan, config, inspect, verify, repair and synth."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from delta_common.command import LOCAL_PATH, run_app
from delta_common.console import print_json, print_tables
from delta_common.errors import UserError
from delta_common.progress import duration
from delta_common.settings_file import as_yaml, help_epilogue, load_settings

app = App(
    name="teacher-cache",
    help="Run a teacher once over a corpus and store, per token, what a student needs to learn from it.",
)

Config = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
"""A settings file, or the first of the overrides where there is no file."""
Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
WITH_SETTINGS = ("build", "plan", "repair", "config")
"""Commands that take any setting as an option."""


@app.command
def build(config: Config = None, /, *overrides: Overrides, out: str | None = None, shards: str | None = None) -> int:
    """Build a cache, or continue one that was stopped; run the same command again.

    Parameters
    ----------
    config
        YAML file with the settings; configs/ has complete examples. Any setting can also be given as
        `--section.key VALUE`, with or without a file.
    out
        Folder or URL of the cache: a path, s3://BUCKET/PREFIX, gs://… or az://…. Overrides `out` in the settings.
    shards
        Build only shards A to B - 1, written A:B: for the jobs of a batch array. Not needed for several processes that
        run at the same time, which share the shards among them: `torchrun --nproc-per-node N -m teacher_cache build …`.
    """
    from teacher_cache.build.job import build as build_cache
    from teacher_cache.settings import BuildSettings

    settings = load_settings(BuildSettings, config, overrides)
    folder = out or settings.out
    if not folder:
        raise UserError("out: no folder is set; give --out PATH, or add `out` to the settings")
    report = build_cache(settings, folder, None if shards is None else _parse_range(shards))
    built = f"{report.shards_built} shards built" if report.shards_built else "nothing left to build"
    elsewhere = f", {report.shards_elsewhere} left to others" if report.shards_elsewhere else ""
    print(f"{report.path}: {built}, {report.shards_found} found{elsewhere}, {duration(report.seconds)}")
    print(f"look at it:  teacher-cache inspect {report.path}")
    return 0


@app.command
def plan(
    config: Config = None,
    /,
    *overrides: Overrides,
    out: str | None = None,
    json: bool = False,
    gpu_memory: float | None = None,
) -> int:
    """Estimate a build from a short trial: tokens, bytes by array, time, error. Writes nothing.

    Parameters
    ----------
    config
        YAML file with the settings, as for build.
    out
        Folder or URL the cache would be written to; free space on its disk is shown.
    json
        Print JSON instead of tables.
    gpu_memory
        Only say over how many GPUs of so many GiB the teacher has to be cut, from its configuration; loads nothing.
    """
    from teacher_cache.settings import BuildSettings

    settings = load_settings(BuildSettings, config, overrides)
    if gpu_memory is not None:
        from teacher_cache.teacher.load import read_configuration
        from teacher_cache.teacher.parallel.foresee import foresee, render_need

        need = foresee(settings, read_configuration(settings.teacher), gpu_memory)
        print_json(need.to_json()) if json else print_tables(render_need(need))
        return 0
    from teacher_cache.build.plan import make_plan, render_plan

    made = make_plan(settings, out or settings.out)
    print_json(made.to_json()) if json else print_tables(render_plan(made))
    return 0


@app.command(name="config")
def show_config(config: Config = None, /, *overrides: Overrides) -> int:
    """Print all settings of a build as YAML: those of a file and of the command line, and the defaults.

    Parameters
    ----------
    config
        YAML file with the settings, as for build.
    """
    from teacher_cache.settings import BuildSettings

    print(as_yaml(load_settings(BuildSettings, config, overrides)))
    return 0


@app.command
def inspect(
    path: str,
    *,
    json: bool = False,
    row: int | None = None,
    tokens: str | None = None,
    html: Annotated[Path | None, LOCAL_PATH] = None,
    rows: str | None = None,
    compare: str | None = None,
) -> int:
    """Show what a cache holds: a summary, one row as text, a page for a browser, or how it differs from another cache.

    Parameters
    ----------
    path
        Folder or URL of the cache, finished or not.
    json
        Print JSON instead of tables.
    row
        Show this row: each token with the teacher's most likely next tokens.
    tokens
        Show only positions A to B - 1 of a row or of the page's rows, written A:B.
    html
        Write a page for a browser to this file; opening it needs no network.
    rows
        Rows whose text the page shows, written A,B,C. Default: a few, spread over the cache.
    compare
        Folder or URL of another cache: show how settings and content differ.
    """
    from teacher_cache.inspect import summary as view
    from teacher_cache.inspect.compare import compare_caches, render_comparison
    from teacher_cache.inspect.page import parse_rows, write_page
    from teacher_cache.inspect.rows import parse_span, render_row, view_row
    from teacher_cache.read.cache import open_cache

    _require_one_view(row=row, html=html, compare=compare)
    _require_its_view(json=json, row=row, tokens=tokens, html=html, rows=rows)
    cache = open_cache(path, allow_unfinished=True)
    if html is not None:
        print(write_page(cache, html, parse_rows(rows), parse_span(tokens) if tokens else None))
    elif compare is not None:
        compared = compare_caches(cache, open_cache(compare, allow_unfinished=True))
        print_json(compared) if json else print_tables(render_comparison(compared))
    elif row is not None:
        positions = view_row(cache, row, *parse_span(tokens))
        print_json([p.to_json() for p in positions]) if json else print_tables(render_row(positions))
    else:
        summary = view.summarize(cache)
        print_json(summary) if json else print_tables(view.render_summary(summary))
    return 0


def _require_one_view(**views: object) -> None:
    given = [f"--{name}" for name, value in views.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: each shows something else; give one of them")


def _require_its_view(*, json: bool, row: int | None, tokens: str | None, html: Path | None, rows: str | None) -> None:
    """Refuse options that say something about a view which is not shown."""
    if json and html is not None:
        raise UserError("--json and --html: a page is not JSON; give one of them")
    if rows is not None and html is None:
        raise UserError(f"--rows {rows}: chooses the rows of a page; give --html FILE too, or --row N")
    if tokens is not None and row is None and html is None:
        raise UserError(f"--tokens {tokens}: belongs to rows; give --row N or --html FILE too")


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
    """Check that every object of a cache is present and as it was written.

    Exit code 0: sound; 1: not sound; 2: the check could not start.

    Parameters
    ----------
    path
        Folder or URL of the cache.
    deep
        Also decode everything and check that the values are possible.
    teacher
        Also run the teacher on some rows and compare.
    teacher_model
        Folder or name of the teacher, if it has moved since the build; implies --teacher.
    teacher_rows
        Run about this many rows through the teacher, spread over the cache.
    json
        Print JSON instead of a table.
    """
    from teacher_cache.store.open import open_existing
    from teacher_cache.verify.objects import verify as verify_bytes
    from teacher_cache.verify.report import render_findings

    store = open_existing(path)
    if deep:
        from teacher_cache.verify.content import verify_bytes_and_content

        findings = verify_bytes_and_content(store)
    else:
        findings = verify_bytes(store)
    if (teacher or teacher_model) and findings.is_sound:
        from teacher_cache.read.cache import open_cache
        from teacher_cache.verify.teacher import verify_teacher

        verify_teacher(open_cache(path), findings, model=teacher_model, rows=teacher_rows)
    print_json(findings.to_json()) if json else print_tables(render_findings(findings))
    return 0 if findings.is_sound else 1


@app.command
def repair(
    path: str, *overrides: Overrides, config: Annotated[Path | None, LOCAL_PATH] = None, deep: bool = False
) -> int:
    """Move the damaged shards of a cache into a quarantine folder and build them again.

    Parameters
    ----------
    path
        Folder or URL of the cache.
    config
        YAML file with the settings the cache was built with, if it was built with a file.
    deep
        Also find damage by decoding everything, not by digests alone.
    """
    from teacher_cache.settings import BuildSettings
    from teacher_cache.verify.repair import repair as repair_cache
    from teacher_cache.verify.report import render_findings

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
    """Write a valid cache of made-up data without a teacher, to try the tools or to measure disk space.

    Parameters
    ----------
    path
        Folder or URL of the cache.
    rows
        Rows in the cache.
    seq_len
        Positions per row.
    vocab_size
        Number of tokens in the vocabulary.
    top_k
        Largest logits kept per position.
    samples
        Up to this many of the other logits are sampled per position; 0 keeps only the largest.
    hidden_size
        Width of the hidden states.
    rows_per_shard
        Rows per shard.
    seed
        Seed of the random data: the same seed and sizes give the same bytes.
    """
    from teacher_cache.build.synthetic import make_synthetic_cache
    from teacher_cache.settings import HiddenSettings

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
        hidden=HiddenSettings().precision,
        hidden_channels=HiddenSettings().drawn(hidden_size),
    )
    print(f"{made}: {rows} rows of {seq_len} positions")
    return 0


def _parse_range(shards: str) -> range:
    first, colon, last = shards.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise UserError(f"--shards {shards}: expected A:B, such as 0:100")
    return range(int(first), int(last))


def main() -> None:
    """Entry point of the console script."""
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]) and sys.argv[1] in WITH_SETTINGS:
        from teacher_cache.settings import BuildSettings

        app[sys.argv[1]].help_epilogue = help_epilogue(BuildSettings)
    run_app(app)
