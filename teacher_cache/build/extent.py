"""How far measured costs of a few rows reach: bytes, objects, hours and restarts of a whole build."""

from collections.abc import Mapping
from dataclasses import dataclass

OBJECTS_BESIDE = 2
"""Of each shard beside its arrays: the commit record, and the position it begins at in the corpus."""


@dataclass(frozen=True)
class Costs:
    """What was measured, each a token but for the last two."""

    read: float
    """Seconds to read and tokenise."""
    compute: float
    """Seconds of the teacher and the targets."""
    encode: float
    """Seconds to encode, by one thread in the background."""
    bytes_by_array: Mapping[str, float]
    load_seconds: float
    """Of the teacher, at every start."""
    teacher_bytes: int
    """Embedding, LM head and tokenizer, once a cache."""

    @property
    def stages(self) -> dict[str, float]:
        return {"reading": self.read, "teacher and targets": self.compute, "encoding": self.encode}


@dataclass(frozen=True)
class Extent:
    """A whole build by one device; n of them take an n-th of the hours."""

    tokens: float
    shards: int
    objects: int
    bytes: float
    seconds: float
    """With one start."""
    tokens_per_second: float
    bound_by: str
    """The stage that the others wait for."""
    shares: dict[str, float]
    """Each stage's share of the time of all."""
    write_rate: float
    """Bytes a second that the disk must take."""
    restart_seconds: float
    """What a stop costs on average: loading the teacher, and half a shard again."""

    @classmethod
    def of(cls, costs: Costs, *, tokens: float, shards: int, overlapping: bool) -> "Extent":
        """`overlapping` stages run beside each other, as with a GPU; on a CPU they share its cores."""
        stages = costs.stages
        whole = sum(stages.values())
        seconds = max(stages.values()) if overlapping else whole
        per_token = sum(costs.bytes_by_array.values())
        return cls(
            tokens=tokens,
            shards=shards,
            objects=shards * (len(costs.bytes_by_array) + OBJECTS_BESIDE),
            bytes=per_token * tokens + costs.teacher_bytes,
            seconds=seconds * tokens + costs.load_seconds,
            tokens_per_second=1 / seconds,
            bound_by=max(stages, key=lambda name: stages[name]),
            shares={name: took / whole for name, took in stages.items()},
            write_rate=per_token / seconds,
            restart_seconds=costs.load_seconds + seconds * tokens / shards / 2,
        )
