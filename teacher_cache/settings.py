"""What a user may set for a build; the docstring under a field is its help text."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from delta_common.settings_file import FrozenSettings
from teacher_cache.format.manifest import HiddenLayout, TargetLayout
from teacher_cache.format.nodes import node_temperatures

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
    """Attention kernel; another kernel rounds differently and so makes another cache."""
    compile: bool = False
    """Let `torch.compile` fuse the layers' small operations: a quarter less time on a GPU, rounded differently."""


class CorpusSettings(FrozenSettings):
    """Where the documents come from."""

    source: str
    """Hub data set, or a local file, folder or glob of Parquet, JSONL (.gz, .zst) or text files."""
    format: Literal["auto", "parquet", "jsonl", "text", "hub"] = "auto"
    """`auto` goes by the files' endings; a source that is no local path is a Hub data set."""
    subset: str | None = None
    """Configuration of a Hub data set, such as `sample-10BT`."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""
    text_column: str = "text"
    """Column or key that holds a document's text."""
    id_column: str = "id"
    """Column or key that names a document; without it a document is named by its file and place."""
    max_documents: PositiveInt | None = None
    """Stop after this many documents."""


class RowSettings(FrozenSettings):
    """How documents become rows of seq_len + 1 tokens."""

    seq_len: PositiveInt = 512
    """Positions a row, T; one further token is the last position's label."""
    mode: Literal["packed", "document"] = "packed"
    """`packed` joins documents by EOS; `document`, the paper's, gives each a row, truncated or padded."""
    context: Literal["row", "document"] = "row"
    """What a position sees of its row: all before it, across documents, or with `document` its own document only."""
    count: PositiveInt | None = None
    """Rows to build; without it as many as the corpus gives, which takes a pass of tokenising to know."""


PRESETS: dict[str, tuple[int, int]] = {"small": (4, 12), "default": (8, 50), "fine": (8, 120)}
"""(top_k, samples) by name; docs/benchmarks.md has the bytes and the error of each."""


class TargetSettings(FrozenSettings):
    """What is kept of each distribution."""

    mode: Literal["sparse", "exact"] = "sparse"
    """`sparse` keeps some logits, `exact` the final hidden state, from which the frozen LM head gives all of them."""
    preset: Literal["small", "default", "fine"] = "default"
    """Sizes of `sparse`: about 40, 95 or 170 bytes a token with a vocabulary of 150,000."""
    top_k: PositiveInt | None = None
    """Largest logits kept with certainty; without it the preset's."""
    samples: Annotated[int, Field(ge=0)] | None = None
    """Most entries drawn from the rest; 0 keeps the top_k and the rest's mass only. Without it the preset's."""
    proposal: tuple[tuple[float, float], ...] = ((1.0, 0.5), (4 / 3, 0.3), (2.0, 0.2))
    """Mixture that entries are drawn from: pairs of a temperature and its share."""
    temperatures: tuple[float, float] = (1.0, 2.0)
    """Lowest and highest temperature the targets must be right at."""
    nodes: Annotated[int, Field(ge=2, le=9)] = 5
    """Temperatures between those at which the mass of the rest is kept."""
    value_dtype: Literal["float16", "float32"] = "float16"
    """Stored precision of kept logits; float16 holds every bfloat16 logit exactly."""
    exact_hidden: Literal["lossless", "int8"] = "lossless"
    """Precision of the final hidden state in `exact` mode."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the random numbers of sampling and stochastic rounding."""

    @model_validator(mode="after")
    def _temperatures_and_shares_fit(self) -> Self:
        low, high = self.temperatures
        if not 0 < low < high:
            raise ValueError(f"temperatures {low:g} to {high:g}: the first must be above 0 and below the second")
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
        """As the manifest says it."""
        top_k, samples = PRESETS[self.preset]
        top_k, samples = self.top_k or top_k, samples if self.samples is None else self.samples
        exact = self.mode == "exact"
        return TargetLayout(
            mode=self.mode,
            top_k=top_k,
            samples=0 if exact else samples,
            proposal=() if exact or not samples else self.proposal,
            seed=self.seed,
            value_dtype=self.value_dtype,
            node_temperatures=node_temperatures(*self.temperatures, self.nodes),
            exact_hidden=self.exact_hidden if exact else "none",
        )


class HiddenSettings(FrozenSettings):
    """What is kept of the hidden states, for the Frobenius term."""

    mean: Literal["none", "lossless", "int8", "int4"] = "lossless"
    """Mean over layers of the state after each layer: in the teacher's dtype, or in 8 or 4 bits."""
    stride: PositiveInt = 1
    """Keep every stride-th position."""

    def layout(self) -> HiddenLayout:
        """As the manifest says it."""
        return HiddenLayout(mean=self.mean, stride=self.stride)


class ComputeSettings(FrozenSettings):
    """How the work is cut. Rows do not depend on it beyond floating-point rounding."""

    batch_size: PositiveInt | Literal["auto"] = 8
    """Rows in one forward pass of the teacher; `auto` tries which number is fastest, once: the cache records it."""
    rows_per_shard: PositiveInt = 256
    """Rows in a shard: what an interrupted build loses at most."""

    @property
    def rows_at_once(self) -> int:
        """`batch_size` when it is a number."""
        assert self.batch_size != "auto", "found when a build begins"
        return self.batch_size


class BuildSettings(FrozenSettings):
    """Everything `teacher-cache build` is told."""

    out: str | None = None
    """Folder or URL of the cache; `--out` overrides it."""
    teacher: TeacherSettings
    corpus: CorpusSettings
    rows: RowSettings
    targets: TargetSettings = TargetSettings()
    hidden: HiddenSettings = HiddenSettings()
    compute: ComputeSettings = ComputeSettings()
