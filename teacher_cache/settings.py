"""The settings of a build; the docstring under a field is its help text."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from delta_common.errors import UserError
from delta_common.settings_file import FrozenSettings
from teacher_cache.format.manifest import ChannelSampling, HiddenLayout, TargetLayout
from teacher_cache.format.nodes import LOWEST_TEMPERATURE, log_mass_step, node_temperatures, nodes_needed
from teacher_cache.targets.states import fewest_channels

PositiveInt = Annotated[int, Field(ge=1)]


class TeacherSettings(FrozenSettings):
    """The model whose distributions are cached."""

    model: str
    """Hub id, local folder, GGUF file, or `package:NAME` for a GGUF inside an installed Python package."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision the teacher runs in; hidden states are stored in it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; another one rounds differently, so it makes another cache."""
    compile: Literal[True, False, "auto"] = False
    """Fuse the layers' small operations with `torch.compile`: a quarter less time on a GPU, different rounding. `auto`
    does so on a GPU where a cache is long enough to save more time than compiling takes; the cache records it."""
    carry: Literal["head", "body"] = "head"
    """What the cache carries of the teacher: embedding and LM head, or its decoder layers too, with which students of
    `model.preset: transplant` and `hybrid` begin."""
    parallel: PositiveInt = 1
    """Devices that hold one teacher together. Under torchrun as many processes cut each matrix (tensor parallel);
    without it one process spreads the layers over its GPUs. The cache records which, as it rounds otherwise."""

    @model_validator(mode="after")
    def _compiled_or_cut(self) -> Self:
        if self.parallel > 1 and self.compile is True:
            raise ValueError(
                f"parallel {self.parallel}: a teacher on several devices is not compiled; set compile to auto"
            )
        return self


class CorpusSettings(FrozenSettings):
    """Where the documents come from."""

    source: str
    """Hub data set, or a local file, folder or glob of Parquet, JSONL (.gz, .zst) or text files."""
    format: str = "auto"
    """`auto` goes by the files' endings, and takes a source that is no local path for a Hub data set; or `parquet`,
    `jsonl`, `text`, `hub`."""
    subset: str | None = None
    """Configuration of a Hub data set, such as `sample-10BT`."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""
    text_column: str = "text"
    """Column or key that holds a document's text."""
    messages_column: str | None = None
    """In place of text: column or key that holds a conversation, a list of messages with `role` and `content`."""
    tools_column: str = "tools"
    """Column or key that holds the tools of a conversation, where there is one."""
    prompt_column: str | None = None
    """In place of messages: column or key that holds a prompt, text or a list of messages."""
    completion_column: str | None = None
    """Column or key that holds the answer to it, text or a list of messages."""
    chat_template: str | None = None
    """File with the Jinja template that renders conversations; by default the tokenizer's own."""
    id_column: str = "id"
    """Column or key that names a document; without it a document is named by its file and place."""
    special_tokens: Literal["text", "control"] = "text"
    """What a special token's name inside a document is, such as `<|endoftext|>`: its letters, or the token itself."""
    max_documents: PositiveInt | None = None
    """Stop after this many documents."""

    @property
    def has_conversations(self) -> bool:
        """Whether documents are conversations, or prompts with their completions, and not plain text."""
        return self.messages_column is not None or self.prompt_column is not None

    @model_validator(mode="after")
    def _one_kind_of_document(self) -> Self:
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ValueError("prompt_column and completion_column belong together; set both or neither")
        if self.messages_column is not None and self.prompt_column is not None:
            raise ValueError("messages_column and prompt_column are two kinds of conversations; set one of them")
        if self.chat_template is not None and not self.has_conversations:
            raise ValueError("chat_template: documents are plain text; set messages_column or prompt_column too")
        return self


class RowSettings(FrozenSettings):
    """How documents become rows of seq_len + 1 tokens."""

    seq_len: PositiveInt = 512
    """Positions per row, T; a row has one more token, the label of its last position."""
    mode: Literal["packed", "document"] = "packed"
    """`packed` joins documents with EOS, or puts whole conversations together; `document`, as in the paper, truncates
    or pads each document to one row."""
    context: Literal["row", "document"] = "row"
    """What a position sees: `row` all earlier tokens of its row, across documents; `document` its own document only, as
    always with packed conversations."""
    loss_on: Literal["all", "assistant", "last"] | None = None
    """Which tokens count: `all`, the `assistant`'s answers, or the `last` answer of each conversation; by default the
    answers of conversations and all of text. For positions that do not count nothing is computed or stored."""
    truncate_at: Literal["turn", "token"] = "turn"
    """Where a conversation is cut that is longer than a row: behind the last answer that fits, or at any token."""
    count: PositiveInt | None = None
    """Rows to build; by default as many as the corpus gives, which takes a pass over the corpus to find out."""


PRESETS: dict[str, tuple[int, int]] = {"small": (4, 12), "default": (8, 50), "fine": (8, 120)}
"""(top_k, samples) by name; docs/benchmarks.md gives the bytes and the error of each."""


class TargetSettings(FrozenSettings):
    """What is kept of each distribution."""

    mode: Literal["sparse", "exact"] = "sparse"
    """`sparse` keeps some logits; `exact` keeps the final hidden state, from which the LM head gives all logits."""
    preset: Literal["small", "default", "fine"] = "default"
    """Size of `sparse` targets: about 40, 95 or 170 bytes per token with a vocabulary of 150,000."""
    top_k: PositiveInt | None = None
    """How many of the largest logits are always kept; by default the preset's."""
    samples: Annotated[int, Field(ge=0)] | None = None
    """Most entries drawn from the rest; 0 keeps only the top_k and the mass of the rest. By default the preset's."""
    proposal: tuple[tuple[float, float], ...] = ((1.0, 0.5), (4 / 3, 0.3), (2.0, 0.2))
    """Mixture that entries are drawn from: pairs of a temperature and its share; shares sum to 1."""
    temperatures: tuple[float, float] = (1.0, 2.0)
    """Lowest and highest temperature the targets are valid at."""
    nodes: Annotated[int, Field(ge=2, le=9)] = 5
    """Number of temperatures, both ends included, at which the mass of the rest is stored."""
    value_dtype: Literal["float16", "float32"] = "float16"
    """Stored precision of kept logits; float16 holds bfloat16 logits exactly."""
    exact_hidden: Literal["lossless", "int8"] = "lossless"
    """Precision of the final hidden state in `exact` mode."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the random numbers for sampling and stochastic rounding."""

    @model_validator(mode="after")
    def _temperatures_and_shares_fit(self) -> Self:
        low, high = self.temperatures
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"temperatures {low:g} to {high:g}: the first must be above 0 and below the second, both finite"
            )
        if self.mode == "sparse" and low < LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperatures {low:g} to {high:g}: the mass of the rest cannot be interpolated below T = "
                f"{LOWEST_TEMPERATURE:g}; begin at {LOWEST_TEMPERATURE:g} or above, or set targets.mode to exact"
            )
        for temperature, share in self.proposal:
            if not low <= temperature <= high:
                raise ValueError(
                    f"proposal: temperature {temperature:g} is outside targets.temperatures, {low:g} to {high:g}"
                )
            if share <= 0:
                raise ValueError(f"proposal: share {share:g} of temperature {temperature:g} must be above 0")
        total = sum(share for _, share in self.proposal)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"proposal: the shares sum to {total:g}, they must sum to 1")
        return self

    def layout(self) -> TargetLayout:
        """These settings as the manifest records them."""
        top_k, samples = PRESETS[self.preset]
        top_k, samples = self.top_k or top_k, samples if self.samples is None else self.samples
        exact = self.mode == "exact"
        nodes = node_temperatures(*self.temperatures, self.nodes or nodes_needed(*self.temperatures))
        return TargetLayout(
            mode=self.mode,
            top_k=top_k,
            samples=0 if exact else samples,
            proposal=() if exact or not samples else self.proposal,
            seed=self.seed,
            value_dtype=self.value_dtype,
            node_temperatures=nodes,
            exact_hidden=self.exact_hidden if exact else "none",
            log_mass_step=log_mass_step(len(nodes)),
        )


HiddenPrecision = Literal["none", "lossless", "int8", "int4", "int2"]

HIDDEN_PRESETS: dict[str, tuple[HiddenPrecision, int | None]] = {
    "none": ("none", None),
    "small": ("int2", 192),
    "default": ("int2", 448),
    "lossless": ("lossless", None),
}
"""(precision, channels drawn at each position) by name; docs/benchmarks.md gives the bytes and the error of each."""


class HiddenSettings(FrozenSettings):
    """What is kept of the mean over layers of the state after each layer, for the Frobenius term of the loss."""

    preset: Literal["none", "small", "default", "lossless"] = "default"
    """Size of the states: 0, about 33 or 75 bytes per token for any teacher, or all channels in the teacher's dtype."""
    mean: HiddenPrecision | None = None
    """In place of a preset, the precision of all channels: none, the teacher's dtype, 8, 4 or 2 bits."""
    channels: PositiveInt | None = None
    """How many channels to keep at each position, drawn anew for each; by default the preset's."""
    stride: PositiveInt = 1
    """Keep every stride-th position, beginning with one drawn for each row."""

    @model_validator(mode="after")
    def _something_to_draw_from(self) -> Self:
        if self.channels is not None and self.precision == "none":
            raise ValueError(f"channels {self.channels}: no states are kept; leave it out, or set preset to default")
        return self

    @property
    def precision(self) -> HiddenPrecision:
        """Stored precision of the states."""
        return self.mean or HIDDEN_PRESETS[self.preset][0]

    def drawn(self, width: int) -> int | None:
        """How many of `width` channels are drawn at each position, None where all are kept as they are.

        2 bits always know the channels' sizes, as a large channel would leave nothing of the others in its group.
        """
        wanted = HIDDEN_PRESETS[self.preset][1] if self.mean is None else None
        if self.channels is not None:
            return self.channels
        if wanted is None:
            return width if self.precision == "int2" else None
        return min(width, max(wanted, fewest_channels(width)))

    def require_fit(self, width: int, seq_len: int) -> None:
        """Raise `UserError` if this cannot be kept of rows of `seq_len` states of `width` channels."""
        if self.channels is not None and not fewest_channels(width) <= self.channels <= width:
            raise UserError(
                f"hidden.channels {self.channels}: the teacher's states have {width} channels, of which "
                f"{fewest_channels(width)} to {width} can be drawn at a position; choose one of these"
            )
        if self.stride > seq_len:
            raise UserError(
                f"hidden.stride {self.stride}: longer than a row of {seq_len} positions, so most rows would keep no "
                f"state; set it to {seq_len} or less, or hidden.preset to none"
            )

    def layout(self, channels: ChannelSampling | None) -> HiddenLayout:
        """These settings as the manifest records them, with the channels that a pilot has sized."""
        return HiddenLayout(mean=self.precision, stride=self.stride, channels=channels)


class ComputeSettings(FrozenSettings):
    """How the work is divided. Rows depend on it only by floating-point rounding."""

    batch_size: PositiveInt | Literal["auto"] = 8
    """Rows per forward pass of the teacher; `auto` measures once which number is fastest, and the cache records it."""
    rows_per_shard: PositiveInt = 256
    """Rows per shard; after an interruption, a build computes the shards that were not finished again."""

    @property
    def rows_at_once(self) -> int:
        """`batch_size` as a number."""
        assert self.batch_size != "auto", "auto is replaced by a number when a build begins"
        return self.batch_size


class BuildSettings(FrozenSettings):
    """All settings of `teacher-cache build`."""

    out: str | None = None
    """Folder or URL of the cache; `--out` overrides it."""
    teacher: TeacherSettings
    corpus: CorpusSettings
    rows: RowSettings = RowSettings()
    targets: TargetSettings = TargetSettings()
    hidden: HiddenSettings = HiddenSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="after")
    def _rows_fit_the_documents(self) -> Self:
        """Settle what follows from the kind of documents: what counts, and the context of packed conversations."""
        rows, given = self.rows, self.rows.model_fields_set
        if not self.corpus.has_conversations:
            if rows.loss_on not in (None, "all"):
                raise ValueError(
                    f"rows.loss_on {rows.loss_on}: documents are plain text, in which nobody speaks; set "
                    "corpus.messages_column or corpus.prompt_column, or rows.loss_on to all"
                )
            settled = {"loss_on": "all"}
        else:
            settled = {"loss_on": rows.loss_on or "assistant"}
            if rows.mode == "packed" and rows.context == "row":
                if "context" in given:
                    raise ValueError(
                        "rows.context row: packed conversations would see each other; set it to document, or rows.mode "
                        "to document"
                    )
                settled["context"] = "document"
        # Frozen for everyone else; what follows is settled here once.
        object.__setattr__(self, "rows", rows.model_copy(update=settled))
        return self
