"""What a finished training job leaves and prints: summary, costs, report; held-out numbers, a sample of text."""

import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cli_common.files import write_atomically
from student.assemble import Run
from student.generate import generate_tokens
from student.held_out import rows_in_order, teacher_figures
from student.job import TRAINED_FILE, Outcome
from student.measure_words import MEASURE_WORDS
from student.records import Records
from student.report import REPORT_FILE, write_report
from student.run_files import COSTS_FILE, SUMMARY_FILE, RunSummary, Sample, read_run
from teacher_cache.reader import Cache

PROMPT_TOKENS = 16
SAMPLE_TOKENS = 48


def finish(outcome: Outcome) -> None:
    """Write `summary.json`, a line of `costs.jsonl` and `report.html`; print the summary to standard output."""
    run = outcome.run
    sample = _sample(outcome)
    write_atomically(run.out / SUMMARY_FILE, _summary(outcome, sample).model_dump_json(indent=1).encode() + b"\n")
    if outcome.spent.steps:
        Records(run.out / COSTS_FILE).append(_costs(outcome))
    write_report([read_run(run.out)], run.out / REPORT_FILE)
    _print(outcome, sample)


def _print(outcome: Outcome, sample: Sample | None) -> None:
    run, console = outcome.run, Console()
    table = Table(title=f"held out: {run.settings.evaluation.cache}", title_justify="left")
    table.add_column("")
    for step in (0, run.total_steps):
        table.add_column(f"after {step:,} steps", justify="right")
    before, after = (asdict(m) if m else {} for m in (outcome.before, outcome.after))
    for name, (words, form) in MEASURE_WORDS.items():
        table.add_row(words, *(form.format(m[name]) if m else "–" for m in (before, after)))
    if after:
        console.print(table)
    if sample is not None:
        console.print("student's text after a held-out beginning:", style="bold")
        console.print(f"{sample.prompt} │ {sample.continuation}", markup=False, highlight=False)
    counts = run.student.parameter_counts()
    console.print(f"trained {counts.trainable:,} of {counts.total:,} parameters", highlight=False)
    if outcome.spent.steps:
        share = outcome.spent.waiting / outcome.spent.seconds
        console.print(f"waiting for data: {share:.1%} of the steps' time", highlight=False)
    for name in (TRAINED_FILE, "metrics.jsonl", "checkpoints", REPORT_FILE):
        console.print(str(run.out / name), highlight=False, soft_wrap=True)


def _summary(outcome: Outcome, sample: Sample | None) -> RunSummary:
    run, counts = outcome.run, outcome.run.student.parameter_counts()
    manifest, path = run.cache.manifest, run.cache.path
    return RunSummary(
        cache=str(path.resolve()) if isinstance(path, Path) else path,
        cache_fingerprint=run.cache.fingerprint,
        teacher=manifest.teacher_name,
        teacher_weights_sha256=manifest.teacher.weights_sha256,
        tokenizer_sha256=manifest.tokenizer_sha256,
        context=manifest.rows.context,
        steps=run.total_steps,
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        teacher_measures=_teacher_measures(run),
        sample=sample,
    )


def _teacher_measures(run: Run) -> dict[str, float] | None:
    """The teacher's own numbers over the rows the student was measured on; what is known as a bound is left out."""
    if run.held_out is None:
        return None
    size, count = run.settings.training.micro_batch_size, run.settings.evaluation.max_rows
    rows = rows_in_order(run.held_out, size, count)
    figures = teacher_figures(run.student.head, run.held_out, rows, run.processes.device)
    found = {name: getattr(figures, name) for name in MEASURE_WORDS}
    return {name: estimate.value for name, estimate in found.items() if estimate and not estimate.at_least}


def _costs(outcome: Outcome) -> dict[str, Any]:
    """What the steps of this process took, with what they ran on; peak memory is the first process's."""
    run, device = outcome.run, outcome.run.processes.device
    on_gpu = device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated(device) if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "step": run.total_steps,
        **asdict(outcome.spent),
        "peak_bytes": peak,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "processes": run.processes.world_size,
        "torch": torch.__version__,
    }


def _sample(outcome: Outcome) -> Sample | None:
    """A prompt and the student's greedy continuation; None without a tokenizer or with partitioned parameters."""
    run = outcome.run
    cache: Cache = run.held_out or run.cache
    if cache.tokenizer_folder is None or run.engine.zero_optimization_partition_weights():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    prompt = cache[0].tokens[:PROMPT_TOKENS].tolist()
    written = generate_tokens(run.student, prompt, max_new_tokens=SAMPLE_TOKENS, stop_token=cache.manifest.eos_token_id)
    return Sample(prompt=tokenizer.decode(prompt), continuation=tokenizer.decode(written))
