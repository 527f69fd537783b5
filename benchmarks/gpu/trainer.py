"""What the cache costs a student of transformers in a step: through `student-train`, through Trainer, and as a feed.

Usage: python -m benchmarks.gpu.trainer [--rows 8] [--repeats 15] [--device cuda] [--json FILE] [--tiny]

The student has Qwen2.5-0.5B's sizes and random weights; the cache is synthetic, its vocabulary 151,665 of the head's
151,936 rows. A `cached` step is α CE + (1 - α) KL from the cache's entries, a `ce` step the next token's cross-entropy
alone, by the same loss in chunks with the same student, optimizer and rows; `own`, through Trainer, is the model's own
loss with all logits at once. Steps take turns, so that a busy machine slows all of them; a ratio is the median over
rounds. `student-train` computes in bfloat16 with float32 masters, Trainer under bfloat16 autocast, both in float32 on a
CPU. `feed` is a DataLoader with spawned workers that does nothing with its batches, after an epoch to warm up.
"""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config, Trainer, TrainerCallback, TrainingArguments

from benchmarks.harness import (
    figures_parser,
    in_turns,
    median_wall,
    peak_bytes,
    print_figures,
    ratio,
    setup,
    synchronize,
    wall_ratio,
    words,
    write_json,
)
from benchmarks.sizes import QwenSize
from cached_distillation import CacheDataset, CachedDistillation, CacheLoader
from cached_distillation.causal_lm import at_head
from cached_distillation.head import real_head
from cached_distillation.step import own_counts
from delta_common.settings_file import load_settings
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.loss.distillation import DistillationLoss, loss_against
from student.loss.schedule import Coefficients
from student.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.settings import TargetSettings

COEFFICIENTS = Coefficients(alpha=0.55, temperature=1.2, beta=0.0)
"""Of most of training: the schedule falls to these within a few hundred steps."""
NEXT_TOKEN = Coefficients(alpha=0.0, temperature=1.0, beta=0.0)
WARM_UP = 3
"""Rounds that are not counted: kernels are compiled and memory is found."""


@dataclass(frozen=True)
class Sizes(QwenSize):
    """Of the student, its head and its rows, and the rows of its cache."""

    cached_rows: int
    rows_per_shard: int


QWEN = Sizes(896, 4864, 24, 14, 2, 151936, 151665, 1024, 512, 64)
TINY = Sizes(32, 48, 2, 4, 2, 320, 300, 32, 64, 8)


def make_cache(folder: Path, sizes: Sizes, device: torch.device) -> Path:
    """A cache of the default targets, without hidden states: the student has another width."""
    preset = TargetSettings().layout()
    return make_synthetic_cache(
        folder / "cache",
        rows=sizes.cached_rows,
        rows_per_shard=sizes.rows_per_shard,
        seq_len=sizes.seq_len,
        vocab_size=sizes.real_vocab,
        top_k=preset.top_k,
        samples=preset.samples,
        hidden="none",
        device=str(device),
    )


def save_student(folder: Path, sizes: Sizes) -> Path:
    """A folder with a configuration alone; its weights are random."""
    sizes.config().save_pretrained(folder / "student")
    return folder / "student"


def random_student(folder: Path) -> nn.Module:
    """The student as transformers has it, in float32."""
    torch.manual_seed(0)
    config = Qwen2Config.from_pretrained(folder)
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def next_token_loss(
    run: Any,
    batch: Batch,
    hidden_states: Tensor,
    coefficients: Coefficients,
    counts: GlobalCounts,
) -> DistillationLoss:
    """In place of `student.train.loop.loss_of`: cross-entropy alone, by the same loss."""
    return loss_against(None, hidden_states, run.student.head, batch, coefficients, counts)


def without_targets(step: StepBatch) -> StepBatch:
    """A step's rows as a cache without logits would give them."""
    bare = tuple(
        tuple(
            replace(part, tensors={n: t for n, t in part.tensors.items() if not n.startswith("logits/")})
            for part in parts
        )
        for parts in step.micro_batches
    )
    return replace(step, micro_batches=bare)


def through_student_train(
    cache_path: Path, student: Path, out: Path, rows: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Times and memory of `student-train`'s own step."""
    from student.train.processes import joined_processes, quiet_deepspeed

    options = ["--distillation.frobenius.weight_init=0", "--distillation.frobenius.weight_final=0"]
    options += [f"--model.hf={student}", "--model.hf_random=true", f"--training.micro_batch_size={rows}"]
    options += ["--training.gradient_accumulation=1", "--training.precision=" + ("fp32", "bf16")[device.type == "cuda"]]
    with ExitStack() as open_until_the_end:
        open_until_the_end.enter_context(quiet_deepspeed())
        from student.train.assemble import assemble
        from student.train.loop import loss_of, take_step

        processes = open_until_the_end.enter_context(joined_processes())
        cache = open_cache(cache_path)
        run = assemble(load_settings(TrainSettings, None, options), cache, out, processes)
        cached = StepBatch.of([cache.rows(range(rows))], rows, [cache], pinned=device.type == "cuda")
        steps: dict[str, Callable[[], object]] = {
            "ce": partial(take_step, run, without_targets(cached), [NEXT_TOKEN], 0, 0, next_token_loss),
            "cached": partial(take_step, run, cached, [COEFFICIENTS], 0, 0, loss_of),
        }
        times = in_turns(steps, repeats, device, warm_up_rounds=WARM_UP)
        memory = {name: peak_bytes(step, device) for name, step in steps.items()}
    return {
        "time_cached_over_ce": wall_ratio(times["cached"], times["ce"]),
        "memory_cached_over_ce": memory["cached"] / memory["ce"] if device.type == "cuda" else None,
        "seconds": {name: median_wall(each) for name, each in times.items()},
        "peak_bytes": memory if device.type == "cuda" else {},
    }


CASES = ("ce", "cached", "own")


class InTurns(CachedDistillation, Trainer):
    """A Trainer whose steps have another loss in turns."""

    def compute_loss(self, model: nn.Module, inputs: Any, *given: Any, **named: Any) -> Any:
        """The loss of the step's case."""
        case, batch = CASES[self.state.global_step % len(CASES)], inputs["batch"]
        if case == "cached":
            return super().compute_loss(model, inputs, *given, **named)
        if case == "own":
            return model(input_ids=batch.input_ids, labels=batch.input_ids, use_cache=False).loss

        def ask(hidden_states: Tensor, lm_head: nn.Module) -> DistillationLoss:
            kind = hidden_states.device.type
            head = real_head(lm_head, batch.stored.manifest.vocab_size, kind)
            with torch.autocast(kind, enabled=False):
                return loss_against(None, hidden_states, head, batch.widened, NEXT_TOKEN, own_counts(batch))

        return at_head(model, batch, ask).total


class StepTimes(TrainerCallback):
    """Seconds and peak memory of each step, from its first forward pass to behind the optimizer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Begin to count."""
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.began = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Note what the step took."""
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.began)
        self.peaks.append(torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0)

    def of(self, case: str, values: list[Any]) -> list[Any]:
        """Of a case, those that count."""
        return values[CASES.index(case) :: len(CASES)][WARM_UP:]


def through_trainer(
    cache: Path, student: Path, out: Path, rows: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Times and memory of transformers' Trainer."""
    on_gpu, times = device.type == "cuda", StepTimes(device)
    args = TrainingArguments(
        str(out),
        per_device_train_batch_size=rows,
        max_steps=len(CASES) * (WARM_UP + repeats),
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = InTurns(
        random_student(student),
        args,
        train_dataset=CacheDataset(cache),
        distillation=COEFFICIENTS,
        callbacks=[times],
    )
    trainer.train()
    seconds = {case: times.of(case, times.seconds) for case in CASES}
    peaks = {case: max(times.of(case, times.peaks)) for case in CASES}
    return {
        "time_cached_over_ce": ratio(seconds["cached"], seconds["ce"]),
        "time_cached_over_own": ratio(seconds["cached"], seconds["own"]),
        "memory_cached_over_ce": peaks["cached"] / peaks["ce"] if on_gpu else None,
        "memory_cached_over_own": peaks["cached"] / peaks["own"] if on_gpu else None,
        "seconds": {case: median(each) for case, each in seconds.items()},
        "peak_bytes": peaks if on_gpu else {},
    }


def feed(cache: Path, rows: int, epochs: int, workers: int) -> float:
    """Tokens per second that a DataLoader with spawned workers gives."""
    loader = CacheLoader(
        CacheDataset(cache),
        batch_size=rows,
        num_workers=workers,
        multiprocessing_context="spawn",
        persistent_workers=True,
        prefetch_factor=4,
    )
    for _ in loader:
        pass
    began, tokens = time.perf_counter(), 0
    for _ in range(epochs):
        tokens += sum(batch.loss_mask.numel() for batch in loader)
    return tokens / (time.perf_counter() - began)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures; Trainer comes before DeepSpeed, which says in the environment that processes are joined."""
    sizes, device = TINY if arguments.tiny else QWEN, torch.device(arguments.device)
    cache, student = make_cache(folder, sizes, device), save_student(folder, sizes)
    tokens_per_second = feed(cache, arguments.rows, arguments.epochs, 2 if arguments.tiny else arguments.workers)
    sized = (arguments.rows, arguments.repeats, device)
    trainer = through_trainer(cache, student, folder / "trainer", *sized)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trained = through_student_train(cache, student, folder / "run", *sized)
    return {
        "setup": setup(
            device, rows=arguments.rows, seq_len=sizes.seq_len, repeats=arguments.repeats, cores=os.cpu_count()
        ),
        "student_train": trained,
        "trainer": trainer,
        "feed_tokens_per_second": tokens_per_second,
    }


def print_table(figures: dict[str, Any]) -> None:
    """One table: a line per case, with its ratios over the cross-entropy alone."""
    print(words(figures["setup"]))
    print(f"\n{'':26} {'s per step':>10} {'over ce':>8} {'peak GiB':>9} {'over ce':>8}")
    for name in ("student_train", "trainer"):
        found = figures[name]
        for case, took in found["seconds"].items():
            time_ratio = found["time_cached_over_ce"] if case == "cached" else took / found["seconds"]["ce"]
            peaks = found["peak_bytes"]
            memory = f"{peaks[case] / 2**30:9.2f} {peaks[case] / peaks['ce']:8.3f}" if peaks else f"{'–':>9} {'–':>8}"
            print(f"{name + ', ' + case:26} {took:10.4f} {time_ratio:8.3f} {memory}")
    print()
    print_figures(figures, "14,.0f", 24)


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--rows", type=int, default=None, help="rows of a batch: 8, or 4 with --tiny")
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count")
    parser.add_argument("--epochs", type=int, default=4, help="of the feed")
    parser.add_argument("--workers", type=int, default=4, help="of the feed; 2 with --tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="to see that it runs")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or (4 if arguments.tiny else 8)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    print_table(figures)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
