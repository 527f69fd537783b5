"""The student's shape: two presets whose numbers can be overridden, checked against the teacher's width."""

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from delta_common.errors import UserError
from delta_common.settings_file import FrozenSettings

PAPER_BLOCKS = 6
PAPER_HEADS = 16
INNER_MULTIPLE = 64
"""xlstm rounds the inner width of mLSTM blocks and of feed-forward layers up to a multiple of this."""


class StudentSettings(FrozenSettings):
    """The student: an xLSTM block stack, its teacher's own layers or any causal LM of transformers; what is not set has
    the preset's value."""

    preset: Literal["paper", "heuristic", "transplant", "hybrid", "transformer"] = "paper"
    """`paper`: 6 blocks, 16 heads. `heuristic`: half the teacher's layers, its heads rounded up to a multiple of 4.
    `transplant` begins as the teacher, with a recurrence where attention was; `hybrid` has a window of attention
    beside the recurrence. `transformer`: the teacher's kind of blocks, untrained, in the size of `paper`."""

    hf: str | None = None
    """In place of a preset: a causal LM of transformers with the teacher's tokenizer; a Hub id or folder. All of it is
    trained, its embedding and head too."""

    hf_random: bool = False
    """Begin `hf` with random weights of its configuration instead of its own."""

    window: int = Field(default=64, ge=1)
    """Positions that the window of `hybrid` sees, the present one among them."""

    sinks: int = Field(default=4, ge=0)
    """First positions of a document that `hybrid` keeps in sight behind its window."""

    attention_at: tuple[int, ...] = ()
    """For `transplant` and `hybrid`: layers, from 0, that keep the teacher's attention over the whole document. They
    find what the others forget; their keys and values grow with the text."""

    teacher: str | None = None
    """For `transplant`, `hybrid` and `transformer`: where the teacher is, a Hub id or folder, if the cache does not
    carry its body."""

    head_transform: Literal["teacher", "none"] = "teacher"
    """What the student does behind the LM head: `teacher`, what its teacher does there, such as a soft cap or a factor
    of the logits; `none`, nothing."""

    blocks: int | None = Field(default=None, ge=1, le=10_000)
    """Blocks in the stack."""

    slstm_at: tuple[int, ...] | None = None
    """Which blocks, from 0, are sLSTM; the others are mLSTM. If not set: every even block but the last."""

    heads: int | None = Field(default=None, ge=1)
    """Heads of every block; must divide the teacher's width."""

    conv_kernel: int = Field(default=4, ge=2, le=10_000)
    """Positions that the causal convolution before each recurrence sees."""

    qkv_block_size: int = Field(default=32, ge=1)
    """Size of the diagonal blocks of an mLSTM block's query, key and value projections."""

    mlstm_proj_factor: float = Field(default=2.0, gt=0, le=1_000)
    """Inner width of an mLSTM block, as a multiple of the teacher's width."""

    slstm_ffn_factor: float = Field(default=1.7, gt=0, le=1_000)
    """Width of the gated feed-forward layer after an sLSTM block, as a multiple of the teacher's width."""

    kernels: Literal["auto", "naive"] = "auto"
    """What computes the recurrences: `auto`, the fastest for the device, or `naive`, the xlstm package's modules."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hf is None and self.hf_random:
            raise ValueError("model.hf_random: begins a student named with model.hf; name one, or leave it out")
        if self.attention_at and not self.begins_as_teacher:
            raise ValueError(f"model.attention_at: {self.kind} has no layers of its teacher; leave it out")
        for name, field in type(self).model_fields.items():
            if self.hf is not None and name not in ("hf", "hf_random") and getattr(self, name) != field.default:
                raise ValueError(f"model.{name}: the student that model.hf names has its own shape; leave it out")
        return self

    @property
    def begins_as_teacher(self) -> bool:
        """Whether the student has its teacher's layers, rather than a block stack of its own."""
        return self.preset in ("transplant", "hybrid")

    @property
    def is_causal_lm(self) -> bool:
        """Whether the student is a model of transformers."""
        return self.hf is not None or self.preset == "transformer"

    @property
    def kind(self) -> str:
        """The option that says which student it is."""
        return f"model.preset {self.preset}" if self.hf is None else f"model.hf {self.hf}"


@dataclass(frozen=True)
class TeacherDims:
    """The teacher's sizes that decide the student's shape."""

    hidden_size: int
    num_layers: int
    num_heads: int


@dataclass(frozen=True)
class StudentShape:
    """Every number the block stack is built from."""

    hidden_size: int
    blocks: int
    slstm_at: tuple[int, ...]
    heads: int
    conv_kernel: int
    qkv_block_size: int
    mlstm_proj_factor: float
    slstm_ffn_factor: float

    @property
    def inner_size(self) -> int:
        """Inner width of an mLSTM block."""
        return math.ceil(self.mlstm_proj_factor * self.hidden_size / INNER_MULTIPLE) * INNER_MULTIPLE


def resolve_shape(settings: StudentSettings, dims: TeacherDims) -> StudentShape:
    """The preset's numbers for this teacher, overridden by the user's.

    Raises `UserError` naming the option that does not fit the teacher's width, and the values that do.
    """
    if settings.preset in ("paper", "transformer"):
        blocks, heads = PAPER_BLOCKS, PAPER_HEADS
    else:
        blocks, heads = max(1, dims.num_layers // 2), math.ceil(dims.num_heads / 4) * 4
    blocks = settings.blocks or blocks
    shape = StudentShape(
        hidden_size=dims.hidden_size,
        blocks=blocks,
        slstm_at=_even_but_last(blocks) if settings.slstm_at is None else settings.slstm_at,
        heads=settings.heads or heads,
        conv_kernel=settings.conv_kernel,
        qkv_block_size=settings.qkv_block_size,
        mlstm_proj_factor=settings.mlstm_proj_factor,
        slstm_ffn_factor=settings.slstm_ffn_factor,
    )
    _check(shape)
    return shape


def _even_but_last(blocks: int) -> tuple[int, ...]:
    return tuple(range(0, blocks - 1, 2))


def _check(shape: StudentShape) -> None:
    if any(not 0 <= block < shape.blocks for block in shape.slstm_at):
        raise UserError(
            f"--model.slstm_at {list(shape.slstm_at)}: the student's blocks are 0 to {shape.blocks - 1}; "
            "name blocks among them or raise --model.blocks"
        )
    # An sLSTM head of one unit has no spread of forget-gate biases: its initialisation divides by head size - 1.
    if shape.hidden_size % shape.heads or shape.inner_size % shape.heads or shape.hidden_size == shape.heads:
        raise UserError(
            f"--model.heads {shape.heads} does not divide the teacher's width {shape.hidden_size} and the mLSTM "
            f"width {shape.inner_size} into heads of 2 or more; heads that do: "
            f"{_divisors(math.gcd(shape.hidden_size, shape.inner_size), below=shape.hidden_size)}"
        )
    if shape.inner_size % shape.qkv_block_size:
        raise UserError(
            f"--model.qkv_block_size {shape.qkv_block_size} does not divide the mLSTM width {shape.inner_size}; "
            f"sizes that do: {_divisors(shape.inner_size, below=257)}"
        )


def _divisors(number: int, *, below: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number + 1, below)) if number % n == 0)
