"""What a user may set for a build; the docstring under a field is its help text."""

from typing import Annotated, Literal

from pydantic import Field

from cli_common.settings_file import FrozenSettings
from teacher_cache.corpus_settings import CorpusSettings, RowSettings

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


class TargetSettings(FrozenSettings):
    """What is kept of each distribution."""

    top_k: PositiveInt = 64
    """Largest logits kept a position."""
    value_dtype: Literal["float16", "float32"] = "float16"
    """Stored precision of kept logits; float16 holds every bfloat16 logit exactly."""


class HiddenSettings(FrozenSettings):
    """What is kept of the hidden states, for the Frobenius term."""

    mean: Literal["none", "lossless"] = "lossless"
    """Mean over layers of the state after each layer, in the teacher's dtype."""


class ComputeSettings(FrozenSettings):
    """How the work is cut. Rows do not depend on it beyond floating-point rounding."""

    batch_size: PositiveInt = 8
    """Rows in one forward pass of the teacher."""
    rows_per_shard: PositiveInt = 256
    """Rows in a shard: what an interrupted build loses at most."""


class BuildSettings(FrozenSettings):
    """Everything `teacher-cache build` is told."""

    out: str | None = None
    """Folder of the cache; `--out` overrides it."""
    teacher: TeacherSettings
    corpus: CorpusSettings
    rows: RowSettings
    targets: TargetSettings = TargetSettings()
    hidden: HiddenSettings = HiddenSettings()
    compute: ComputeSettings = ComputeSettings()
