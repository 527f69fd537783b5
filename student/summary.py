"""What a finished training job prints: held-out numbers before and after, a sample of text, where things are."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from student.generate import generate_tokens
from student.job import TRAINED_FILE, Outcome
from teacher_cache.reader import Cache

PROMPT_TOKENS = 16
SAMPLE_TOKENS = 48
ROWS = {
    "cross_entropy": ("cross-entropy, nats a token", ".4f"),
    "perplexity": ("perplexity", ",.2f"),
    "kl": ("KL from the teacher at T = 1, nats", ".4f"),
    "agreement": ("same first choice as the teacher", ".2%"),
}


def print_summary(outcome: Outcome) -> None:
    """Print the summary of a job to standard output."""
    run, console = outcome.run, Console()
    table = Table(title=f"held out: {run.settings.evaluation.cache}", title_justify="left")
    table.add_column("")
    for step in (0, run.total_steps):
        table.add_column(f"after {step:,} steps", justify="right")
    before, after = (asdict(m) if m else {} for m in (outcome.before, outcome.after))
    for name, (words, form) in ROWS.items():
        table.add_row(words, *(format(m[name], form) if m else "–" for m in (before, after)))
    if after:
        console.print(table)
    sample = sample_text(outcome)
    if sample is not None:
        console.print("student's text after a held-out beginning:", style="bold")
        console.print(f"{sample[0]} │ {sample[1]}", markup=False, highlight=False)
    counts = run.student.parameter_counts()
    console.print(f"trained {counts.trainable:,} of {counts.total:,} parameters", highlight=False)
    if outcome.waiting is not None:
        console.print(f"waiting for data: {outcome.waiting:.1%} of the steps' time", highlight=False)
    for name in (TRAINED_FILE, "metrics.jsonl", "checkpoints"):
        console.print(str(run.out / name), highlight=False, soft_wrap=True)


def sample_text(outcome: Outcome) -> tuple[str, str] | None:
    """A prompt and the student's greedy continuation; None without a tokenizer or with partitioned parameters."""
    run = outcome.run
    cache: Cache = run.held_out or run.cache
    if cache.tokenizer_folder is None or run.engine.zero_optimization_partition_weights():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    prompt = cache[0].tokens[:PROMPT_TOKENS].tolist()
    written = generate_tokens(run.student, prompt, max_new_tokens=SAMPLE_TOKENS, stop_token=cache.manifest.eos_token_id)
    return tokenizer.decode(prompt), tokenizer.decode(written)
