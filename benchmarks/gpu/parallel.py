"""A teacher cut over two GPUs: what is left of its own speed when a cache is built, and whether it is the same teacher.

Usage: torchrun --standalone --nproc-per-node 2 -m benchmarks.gpu.parallel [--batch 16] [--json FILE] [--tiny]

Speed is of a teacher of Qwen2.5-32B's shape, 64 GB of random bfloat16 made on the devices. `bare` is its own
tensor-parallel forward pass with its LM head over rows of 512, each process the logits of its share of the positions,
nothing kept and nothing sent. `computed` is that with targets and states as a build computes them; `build` is
`teacher-cache build` from text to committed shards, without loading: the difference of builds of different lengths.
`reach` is bare over build.

Sameness is of a teacher of Qwen2.5-1.5B's shape, from files: its cache, built cut in two by the command's own code,
against the teacher uncut on one GPU, and with its layers over both. `cached` is the mean difference of the cache;
`control` that of two runs of the teacher, once in another batch shape alone, once also with sums in parts.
"""

import argparse
import contextlib
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed
from transformers import Qwen2ForCausalLM
from transformers.distributed import DistributedConfig

from benchmarks.gpu.build import BATCHES_PER_SHARD, QWEN, TINY, TeacherSize, make_corpus, save_random_teacher, tokenizer
from benchmarks.harness import as_json, figures_parser, seconds, setup, synchronize, write_json
from teacher_cache import open_cache
from teacher_cache.build.compute import computed_batches
from teacher_cache.build.job import build, build_shards
from teacher_cache.build.request import open_writer
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.build.writer import CacheWriter
from teacher_cache.read.cache import Cache
from teacher_cache.settings import BuildSettings
from teacher_cache.store.open import open_store
from teacher_cache.teacher.load import group_of, serve
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.group import LeftOut, TeacherGroup
from teacher_cache.teacher.parallel.whole import keep_ends_whole
from teacher_cache.verify.objects import Findings
from teacher_cache.verify.teacher import verify_teacher

LARGE = TeacherSize(5120, 27_648, 64, 40, 8, 152_064, 151_665, 512, 8192)
LARGE_TINY = replace(TINY, hidden=64, layers=3)
SHARDS = 3
"""Of the longer of two builds; the shorter has one."""
VERIFIED_ROWS = 64
BEGAN = time.monotonic()


def say(what: str) -> None:
    """How far it has come: a run takes minutes, and one that is cut short still tells what it found."""
    if os.environ["RANK"] == "0":
        print(f"{time.monotonic() - BEGAN:5.0f} s: {what}", file=sys.stderr, flush=True)


class InStep(TeacherGroup):
    """A group whose processes all run this program, so that nobody needs to be told."""

    def tell(self, name: str, *arguments: object, **named: object) -> None:
        """Tell nobody."""


def on_the_devices(size: TeacherSize, group: TeacherGroup) -> Qwen2ForCausalLM:
    """A cut model of random weights that never were in one place."""
    torch.manual_seed(0)
    last = size.real_vocab - 1
    config = size.config(bos_token_id=None, eos_token_id=last, pad_token_id=last)
    config.tie_word_embeddings = False
    model = Qwen2ForCausalLM.from_pretrained(
        None,
        config=config,
        state_dict={},
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        distributed_config=DistributedConfig(tp_size=group.size),
    )
    keep_ends_whole(model)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        distributed.broadcast(end.weight.data, src=0)
    return model.eval().requires_grad_(False)


def wanted(
    teacher: Path, corpus: Path, size: TeacherSize, batch: int, shards: int, *, per_shard: int = BATCHES_PER_SHARD
) -> BuildSettings:
    """A build of so many shards with a teacher cut over all processes."""
    rows = per_shard * batch
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(teacher), "parallel": int(os.environ["WORLD_SIZE"])},
            "corpus": {"source": str(corpus)},
            "rows": {"seq_len": size.seq_len, "count": shards * rows},
            "compute": {"batch_size": batch, "rows_per_shard": rows},
        }
    )


@torch.inference_mode()
def bare(teacher: Teacher, tokens: Tensor, group: TeacherGroup) -> None:
    """A forward pass and the logits of this process' share of its positions."""
    final = teacher.states(tokens, mean=False).final.flatten(0, 1)
    for _ in teacher.logits_in_chunks(final[group.share(len(final)).to(final.device)]):
        pass


def bare_seconds(teacher: Teacher, tokens: Tensor, group: TeacherGroup, batches: int, rounds: int) -> list[float]:
    """Seconds per batch, of each round, when all processes have ended it; the first passes record a CUDA graph."""
    for _ in range(3):
        bare(teacher, tokens, group)

    def several() -> None:
        for _ in range(batches):
            bare(teacher, tokens, group)
        synchronize(teacher.device)
        distributed.barrier(group=group.control)

    return [seconds(several, teacher.device) / batches for _ in range(rounds)]


def led(group: TeacherGroup, teacher: Teacher, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The leader's work, for which the others compute what it asks for."""
    if not group.leads:
        serve(group, teacher)
        return {}
    try:
        return work()
    finally:
        group.stop()


def computed_seconds(teacher: Teacher, writer: CacheWriter, real_vocab: int) -> float:
    """Seconds per batch of a shard's targets and states, one batch after another as a build has them."""
    manifest = writer.manifest
    arrays = ShardArrays.empty(manifest, manifest.shard_rows(0))
    arrays.tokens[:] = torch.randint(real_vocab, arrays.tokens.shape, generator=torch.Generator().manual_seed(0))
    arrays.loss_mask[:] = True
    size = int(manifest.compute["batch_size"])

    def shard() -> None:
        for _ in computed_batches(teacher, arrays, size, ShardStatistics(manifest.targets)):
            pass

    shard()  # the second batch of a shape records a CUDA graph
    return seconds(shard, teacher.device) / (len(arrays.rows) / size)


def built(teacher: Teacher, settings: BuildSettings, out: Path, real_vocab: int) -> dict[str, Any]:
    """Seconds per batch of what a build does, and of making its manifest, in which all weights are digested."""
    opened: dict[str, Any] = {}

    def begin() -> None:
        opened["both"] = open_writer(open_store(out), settings, teacher)

    manifest = seconds(begin)
    settings, writer = opened["both"]
    say(f"a manifest of the large teacher in {manifest:.1f} s")
    computed = computed_seconds(teacher, writer, real_vocab)
    say(f"computed {computed:.3f} s a batch")
    took = [
        seconds(lambda shards=shards: build_shards(settings, teacher, writer, list(shards)))
        for shards in (range(1), range(1, 2), range(2, 2 + SHARDS))
    ]
    say(f"builds of 1, 1 and {SHARDS} shards: {', '.join(f'{each:.1f}' for each in took)} s")
    return {
        "computed": computed,
        "build": (took[2] - took[1]) / ((SHARDS - 1) * BATCHES_PER_SHARD),
        "manifest_seconds": manifest,
    }


def speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of the large teacher; of processes that do not lead, nothing."""
    size = LARGE_TINY if arguments.tiny else LARGE
    settings = wanted(folder, folder / "corpus", size, arguments.batch, 2 + SHARDS)
    tokens = torch.randint(size.real_vocab, (arguments.batch, size.seq_len), generator=torch.Generator().manual_seed(0))
    with group_of(settings.teacher) as group:
        model, words = on_the_devices(size, group), tokenizer(size)
        in_step = InStep(group.rank, group.size, group.control, group.before_leaving)
        alike = Teacher(model, words, settings.teacher, in_step)
        teacher = Teacher(model, words, settings.teacher, group)
        say("the large teacher is on the devices")
        before = bare_seconds(alike, tokens, in_step, arguments.batches, arguments.rounds)
        say(f"bare {statistics.median(before):.3f} s a batch")
        parts = led(group, teacher, lambda: built(teacher, settings, folder / "large", size.real_vocab))
        after = bare_seconds(alike, tokens, in_step, arguments.batches, arguments.rounds)
        if not group.leads:
            serve(group)  # until the leader ends too
            return {}
        return {"shape": vars(size), **of_speed(before, after, parts), **machine(teacher.device, tokens, model)}


def of_speed(before: list[float], after: list[float], parts: Mapping[str, float]) -> dict[str, Any]:
    """Seconds per batch, and the shares that are left of the bare teacher."""
    teacher = statistics.median(before + after)
    return {
        "seconds_a_batch": {"bare": teacher, **{name: parts[name] for name in ("computed", "build")}},
        "bare_rounds": {"before": before, "after": after},
        "reach": teacher / parts["build"],
        "computed_reach": teacher / parts["computed"],
        "manifest_seconds": parts["manifest_seconds"],
    }


def machine(device: torch.device, tokens: Tensor, model: Qwen2ForCausalLM) -> dict[str, Any]:
    """What the figures depend on, and the memory of the first GPU."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    count = sum(parameter.numel() for parameter in model.parameters())
    return setup(device, batch=list(tokens.shape), peak_bytes=peak, parameters=count)


def sameness(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Differences of a cache whose teacher was cut from the teacher that is not."""
    leads, size = os.environ["RANK"] == "0", TINY if arguments.tiny else QWEN
    made, out, batch = folder / "teacher", folder / "small", min(arguments.batch, 8)
    settings = wanted(made, folder / "corpus", size, batch, 2, per_shard=max(1, VERIFIED_ROWS // batch // 2))
    if leads:
        save_random_teacher(made, size, "cuda" if torch.cuda.is_available() else "cpu")
    with group_of(settings.teacher) as group:
        if not group.leads:
            serve(group)  # until the leader ends: it has saved the teacher
    say("the smaller teacher is saved")
    with contextlib.suppress(LeftOut):
        build(settings, out)
    if not leads:
        return {}
    say("its cache is built")
    cache = open_cache(out)
    uncut = cache.manifest.model_copy(update={"compute": {"batch_size": batch}})
    ways = {"uncut": Cache(cache.store, uncut, cache.commits)}
    if torch.cuda.device_count() > 1:
        ways["spread_by_layers"] = cache
    found: dict[str, Any] = {}
    for name, as_built in ways.items():
        findings = Findings(cache.path)
        verify_teacher(as_built, findings, model=None, rows=VERIFIED_ROWS)
        found[name] = {"sound": not findings.faults, **findings.measures}
        say(f"compared with the teacher {name}")
    return {"sameness": found}


def main() -> None:
    """Measure, print, write."""
    parser = figures_parser(__doc__)
    parser.add_argument("--batch", type=int, default=16, help="rows in a batch")
    parser.add_argument("--batches", type=int, default=8, help="batches in a round of the bare teacher")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["speed", "sameness"], help="one of the two parts")
    parser.add_argument("--tiny", action="store_true", help="tiny teachers: to try the script, also on a CPU")
    arguments = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        parser.error("start it by torchrun --standalone --nproc-per-node 2 -m benchmarks.gpu.parallel")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # One folder for all processes, by what the launcher gives them in common.
    folder = Path(tempfile.gettempdir()) / f"parallel-{os.environ['MASTER_PORT']}"
    leads = os.environ["RANK"] == "0"
    try:
        if leads:
            size = TINY if arguments.tiny else QWEN
            folder.mkdir()
            make_corpus(folder / "corpus", (3 + SHARDS) * BATCHES_PER_SHARD * arguments.batch * size.seq_len)
        figures: dict[str, Any] = {}
        for part in (speed, sameness):
            if arguments.only in (None, part.__name__):
                figures |= part(arguments, folder)
                gc.collect()  # a teacher's hooks refer to it
        if leads:
            print(as_json(figures))
            write_json(figures, arguments.json)
    finally:
        if leads:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
