"""Building with a teacher of Qwen2.5-1.5B's size and random weights: how much of the bare teacher's speed is left.

Usage: python -m benchmarks.gpu.build [--batch 16] [--batches 24] [--json FILE] [--tiny]

`teacher` is the forward pass with its LM head over batches of rows of 512, nothing kept; `build` is what
`teacher-cache build` does with the presets `default` of targets and states, without the time to load the teacher:
the difference of two builds of different lengths. `naive` is the teacher with float32 logits, their top_k and one
logsumexp. `peak` is the share of the matrix rate measured on 8,192² bfloat16 products. Text is random letters.
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from benchmarks.harness import as_json, figures_parser, median_seconds, seconds, write_json
from benchmarks.sizes import QwenSize
from teacher_cache.build.compute import compute_batch
from teacher_cache.build.job import build
from teacher_cache.build.request import make_manifest
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.format.codec import describe_arrays, encode_shard
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher


@dataclass(frozen=True)
class TeacherSize(QwenSize):
    """A teacher, and the width of the matrices its rate is measured on."""

    matrix: int


QWEN = TeacherSize(1536, 8960, 28, 12, 2, 151_936, 151_665, 512, 8192)
TINY = TeacherSize(32, 64, 2, 4, 2, 320, 300, 32, 64)
END = "<|endoftext|>"
BATCHES_PER_SHARD = 16
"""256 rows of 512 where a batch has 16, as in configs/paper.yaml."""


def save_random_teacher(folder: Path, size: TeacherSize, device: str) -> Path:
    """A teacher of random weights, and a tokenizer with as many tokens."""
    torch.manual_seed(0)
    last = size.real_vocab - 1
    config = size.config(bos_token_id=None, eos_token_id=last, pad_token_id=last)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer(size).save_pretrained(folder)
    return folder


def tokenizer(size: TeacherSize) -> PreTrainedTokenizerFast:
    """Text to bytes, with words that never occur up to the size wanted, and an end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"<word {number}>" for number in range(len(alphabet), size.real_vocab - 1)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)


def make_corpus(folder: Path, tokens: int) -> Path:
    """Text files of random letters, one token each."""
    folder.mkdir()
    chance, document = random.Random(0), 4000  # noqa: S311 - no secret
    for number in range(tokens // document + 2):
        (folder / f"{number:06d}.txt").write_text("".join(chance.choices("abcdefgh ", k=document)))
    return folder


def settings(
    teacher: Path, corpus: Path, size: TeacherSize, arguments: argparse.Namespace, batches: int
) -> BuildSettings:
    """A build of so many batches, `BATCHES_PER_SHARD` to a shard."""
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(teacher), "device": arguments.device, "compile": arguments.compile},
            "corpus": {"source": str(corpus)},
            "rows": {"seq_len": size.seq_len, "count": batches * arguments.batch},
            "hidden": {"preset": "default"},
            "compute": {"batch_size": arguments.batch, "rows_per_shard": BATCHES_PER_SHARD * arguments.batch},
        }
    )


def matrix_rate(size: TeacherSize, device: torch.device) -> float:
    """Operations per second of square bfloat16 products on random data."""
    a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size.matrix**3 / median_seconds(lambda: a @ b, 10, device)


def operations_per_token(size: TeacherSize) -> float:
    """Operations per token of the teacher's matrix products in a forward pass, attention's among them."""
    head_dim = size.hidden // size.heads
    projections = size.hidden * head_dim * (2 * size.heads + 2 * size.kv_heads) + 3 * size.hidden * size.inner
    attention = 2 * size.heads * head_dim * size.seq_len / 2
    return 2.0 * (size.layers * (projections + attention) + size.hidden * size.vocab)


@torch.inference_mode()
def teacher_parts(teacher: Teacher, tokens: Tensor, device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds per batch: the bare teacher, its body, and the naive way to its targets."""

    def bare(keep: Callable[[Tensor], object]) -> None:
        final = teacher.states(tokens, mean=False).final.flatten(0, 1)
        for _, logits in teacher.logits_in_chunks(final):
            keep(logits)

    def naive(logits: Tensor) -> object:
        wide = logits.float()
        return wide.topk(8), wide.logsumexp(-1)

    return {
        "teacher": median_seconds(lambda: bare(lambda _: None), repeats, device),
        "body": median_seconds(lambda: teacher.states(tokens, mean=False), repeats, device),
        "body_with_mean": median_seconds(lambda: teacher.states(tokens, mean=True), repeats, device),
        "naive": median_seconds(lambda: bare(naive), repeats, device),
    }


def shard_parts(
    teacher: Teacher, wanted: BuildSettings, device: torch.device, repeats: int, real_vocab: int
) -> dict[str, float]:
    """Seconds per batch: everything computed for it, and its share of encoding a shard."""
    batch = wanted.compute.batch_size
    manifest = make_manifest(wanted, teacher, {})
    arrays = ShardArrays.empty(manifest, range(batch))
    arrays.tokens[:] = torch.randint(real_vocab, arrays.tokens.shape, generator=torch.Generator().manual_seed(0))
    arrays.loss_mask[:] = True
    sums = ShardStatistics(manifest.targets)
    shard = ShardArrays.empty(manifest, manifest.shard_rows(0))
    computed = median_seconds(lambda: compute_batch(teacher, arrays, slice(0, batch), sums), repeats, device)
    for name, array in shard.by_name.items():
        array[:] = arrays.by_name[name].repeat(-(-len(array) // batch), axis=0)[: len(array)]
    documents = describe_arrays(manifest)
    encoded = median_seconds(lambda: encode_shard(manifest, documents, 0, shard.by_name), max(1, repeats // 3), device)
    return {"computed": computed, "encoded": encoded * batch / len(shard.rows)}


def build_seconds(wanted: BuildSettings, out: Path) -> float:
    """Seconds of a whole build."""
    shutil.rmtree(out, ignore_errors=True)
    return seconds(lambda: build(wanted, out))


def measure_build_on_gpu(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    size = TINY if arguments.tiny else QWEN
    device = torch.device(arguments.device)
    short, long = BATCHES_PER_SHARD, BATCHES_PER_SHARD + arguments.batches
    made = save_random_teacher(folder / "teacher", size, arguments.device)
    corpus = make_corpus(folder / "corpus", (long + 1) * arguments.batch * size.seq_len)
    teacher = load_teacher(settings(made, corpus, size, arguments, long).teacher)
    random_ = torch.Generator().manual_seed(0)
    tokens = torch.randint(size.real_vocab, (arguments.batch, size.seq_len), generator=random_)
    parts = teacher_parts(teacher, tokens, device, arguments.repeats)
    wanted = settings(made, corpus, size, arguments, long)
    parts |= shard_parts(teacher, wanted, device, arguments.repeats, size.real_vocab)
    del teacher
    # The first build compiles.
    took = [build_seconds(settings(made, corpus, size, arguments, n), folder / "cache") for n in (short, short, long)][
        1:
    ]
    parts["build"] = (took[1] - took[0]) / (long - short)
    batch_tokens = tokens.numel()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    rate = matrix_rate(size, device)
    return {
        "seconds_a_batch": parts,
        "tokens_per_second": {name: batch_tokens / value for name, value in parts.items()},
        "build_over_teacher": parts["teacher"] / parts["build"],
        "computed_over_teacher": parts["teacher"] / parts["computed"],
        "matrix_operations_per_second": rate,
        "teacher_share_of_peak": operations_per_token(size) * batch_tokens / parts["teacher"] / rate,
        "peak_bytes": peak,
        "seconds_to_load_and_first_shards": took[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "batch": [arguments.batch, size.seq_len],
    }


def main() -> None:
    """Measure, print, write."""
    parser = figures_parser(__doc__)
    parser.add_argument("--batch", type=int, default=16, help="rows in a batch")
    parser.add_argument("--batches", type=int, default=64, help="batches that count; a multiple of 16")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="as `teacher.compile`")
    parser.add_argument("--tiny", action="store_true", help="a tiny teacher: to try the script")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_build_on_gpu(arguments, Path(folder))
    print(as_json(figures))
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
