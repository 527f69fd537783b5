"""What is compared with what, as data: variants of training, and the tables they stand in."""

from dataclasses import dataclass, replace
from typing import Literal

ALPHA, TEMPERATURE, BETA, DISTIL = (
    "--distillation.alpha",
    "--distillation.temperature",
    "--distillation.frobenius.weight",
    "--distillation",
)

Shape = Literal["log", "linear", "cosine"]
"""How α and T fall: the paper's 1 / (1 + ln(1 + k)), a straight line, or half a cosine."""


def fixed(option: str, value: float) -> tuple[str, ...]:
    """A quantity of the schedule that does not change."""
    return fall(option, value, value)


def fall(option: str, init: float, final: float) -> tuple[str, ...]:
    """A quantity of the schedule that falls from one value to the other."""
    return (f"{option}_init={init}", f"{option}_final={final}")


@dataclass(frozen=True)
class Variant:
    """One way to train; defaults are the paper's δ-distillation from the cache, without the Frobenius term."""

    name: str
    words: str
    """Its name in a table."""
    options: tuple[str, ...] = ()
    """Options of `student-train` that override the common ones."""
    teacher: str = "cache"
    """Where the teacher's distribution comes from: `none`, `cache`, `online`, `exact`, or `KIND:K`, the K largest
    logits of the exact ones with the rest `renormalised`, `dropped` or in a `bucket`."""
    as_long_as: str | None = None
    """Train for as many steps as fit into the time that this variant takes."""
    shape: Shape = "log"
    align_share: float = 0.0
    """Share of the steps that train on the Frobenius term alone, before all others."""
    unfreeze_at: float | None = None
    """Share of the steps after which embedding and head are trained too."""
    states: Literal["sparse", "sparse-default", "sparse-small"] = "sparse"
    """The cache of sampled entries, by what it keeps of the hidden states: all, or what the preset says."""
    frobenius_counts: bool = True
    """False: β takes its weight from cross-entropy, but the term itself is left out."""


@dataclass(frozen=True)
class Table:
    """Some variants side by side, compared with the first."""

    part: int
    title: str
    variants: tuple[Variant, ...]


NO_FROBENIUS = fixed(BETA, 0.0)
CE_ONLY = (*fixed(ALPHA, 0.0), *fixed(TEMPERATURE, 1.0))
AT_TWO = fixed(TEMPERATURE, 2.0)
OVER_ALL = (f"{DISTIL}.restart_each_epoch=false", f"{DISTIL}.delta=0")

CE = Variant("ce", "CE only", CE_ONLY, teacher="none")
DELTA = Variant("delta", "δ-distillation, cached (`default`)")
CHANNELS = f"{DISTIL}.frobenius.channels"
FROBENIUS = Variant("frobenius", "δ + Frobenius, β = 0.1", (*fixed(BETA, 0.1), f"{CHANNELS}=raw"))
MAPPED = Variant("mapped", "δ + F, mapped, β = 0.2", (*fixed(BETA, 0.2), f"{CHANNELS}=mapped"))
ONLINE = Variant("online", "δ-distillation, teacher online", teacher="online")
CE_AS_LONG = Variant("ce-as-long", "CE only, as long by the clock", CE_ONLY, teacher="none", as_long_as="delta")
ONLINE_AS_LONG = Variant("online-as-long", "teacher online, as long by the clock", teacher="online", as_long_as="delta")
NORMALISED = Variant(
    "frobenius-normalised", "δ + F, normalised channels", (*fixed(BETA, 0.1), f"{DISTIL}.frobenius.channels=normalised")
)


def _accounts(suffix: str, words: str, options: tuple[str, ...]) -> tuple[Variant, ...]:
    """The teacher's distribution kept in every way, at one schedule."""
    small = ("--targets.top_k=4", "--targets.samples=12")
    kinds = {"bucket": "the rest in a bucket", "renormalised": "renormalised", "dropped": "the rest dropped"}
    return (
        Variant(f"exact{suffix}", f"exact{words}", options, teacher="exact"),
        Variant(f"delta{suffix}", f"sampled, `default`: 8 + 50{words}", options),
        Variant(f"small{suffix}", f"sampled, `small`: 4 + 12{words}", (*options, *small)),
        *(
            Variant(f"{kind}-{k}{suffix}", f"top {k}, {meaning}{words}", options, teacher=f"{kind}:{k}")
            for k in (58, 16)
            for kind, meaning in kinds.items()
        ),
    )


def _held(name: str, alpha: float, temperature: float) -> Variant:
    options = (*fixed(ALPHA, alpha), *fixed(TEMPERATURE, temperature))
    return Variant(name, f"α = {alpha:g}, T = {temperature:g} throughout", options)


TABLES = (
    Table(1, "Cached against online, distillation against cross-entropy", (ONLINE, DELTA, FROBENIUS, CE)),
    Table(1, "At equal wall time", (DELTA, CE_AS_LONG, ONLINE_AS_LONG)),
    Table(2, "What is kept of the teacher, at the paper's schedule", _accounts("", "", ())),
    Table(2, "What is kept of the teacher, at T = 2", _accounts("-at-2", ", T = 2", AT_TWO)),
    Table(
        3,
        "The Frobenius term",
        (
            DELTA,
            FROBENIUS,
            Variant(
                "frobenius-weight",
                "β = 0.1 taken from CE, F left out",
                FROBENIUS.options,
                frobenius_counts=False,
            ),
            Variant("frobenius-falling", "δ + F, β = 0.2 → 0.1", (*fall(BETA, 0.2, 0.1), f"{CHANNELS}=raw")),
            NORMALISED,
            MAPPED,
        ),
    ),
    Table(
        3,
        "How much of the hidden states is kept",
        (
            MAPPED,
            replace(MAPPED, name="mapped-default", words="the same, states of `default`", states="sparse-default"),
            replace(MAPPED, name="mapped-small", words="the same, states of `small`", states="sparse-small"),
            Variant(
                "mapped-weight",
                "β = 0.2 taken from CE, F left out",
                (*fixed(BETA, 0.2), f"{CHANNELS}=raw"),
                frobenius_counts=False,
            ),
        ),
    ),
    Table(
        3,
        "How much of the hidden states is kept, compared as they are",
        (
            FROBENIUS,
            replace(FROBENIUS, name="raw-default", words="the same, states of `default`", states="sparse-default"),
            replace(FROBENIUS, name="raw-small", words="the same, states of `small`", states="sparse-small"),
        ),
    ),
    Table(
        3,
        "Annealing against fixed α and T",
        (
            DELTA,
            _held("fixed-high", 0.8, 2.0),
            _held("fixed-middle", 0.65, 1.5),
            _held("fixed-low", 0.5, 1.0),
            Variant("alpha-alone", "α = 0.8 → 0.5, T = 1", fixed(TEMPERATURE, 1.0)),
            Variant("temperature-alone", "α = 0.5, T = 2 → 1", fixed(ALPHA, 0.5)),
        ),
    ),
    Table(
        3,
        "The shape of the schedule, and its epochs",
        (
            DELTA,
            Variant("multiplicative", "1/ln, multiplicative epoch decay", (f"{DISTIL}.epoch_decay=multiplicative",)),
            Variant("no-restart", "1/ln, k over the whole training", (f"{DISTIL}.restart_each_epoch=false",)),
            Variant("linear", "linear in every epoch", shape="linear"),
            Variant("linear-over-all", "linear over the whole training", OVER_ALL, shape="linear"),
            Variant("cosine-over-all", "cosine over the whole training", OVER_ALL, shape="cosine"),
        ),
    ),
    Table(
        3,
        "Six blocks, the heuristic, and two blocks as in all other tables",
        (
            Variant("six-blocks", "6 blocks (`paper`)", ("--model.blocks=6", "--model.slstm_at=null")),
            Variant(
                "heuristic",
                "`heuristic`",
                ("--model.preset=heuristic", "--model.blocks=null", "--model.slstm_at=null", "--model.heads=null"),
            ),
            DELTA,
        ),
    ),
    Table(
        4,
        "Other ways",
        (
            DELTA,
            Variant("ce-dominant", "0.9 CE + 0.1 KL at T = 1", (*fixed(ALPHA, 0.1), *fixed(TEMPERATURE, 1.0))),
            Variant("kl-alone", "KL alone at T = 1", (*fixed(ALPHA, 1.0), *fixed(TEMPERATURE, 1.0))),
            NORMALISED,
            Variant("align-first", "F alone for a fifth, then δ + F", FROBENIUS.options, align_share=0.2),
            Variant("align-first-normalised", "the same, normalised channels", NORMALISED.options, align_share=0.2),
            Variant("late-unfreezing", "embedding and head trained in the last 30 %", unfreeze_at=0.7),
            Variant(
                "linear-frobenius",
                "linear over the whole training, δ + F, β = 0.2 → 0.1",
                (*OVER_ALL, *fall(BETA, 0.2, 0.1), f"{CHANNELS}=raw"),
                shape="linear",
            ),
        ),
    ),
)


def all_variants() -> dict[str, Variant]:
    """Every variant once, by name, in the order of the tables."""
    found: dict[str, Variant] = {}
    for table in TABLES:
        for variant in table.variants:
            found.setdefault(variant.name, variant)
    return found
