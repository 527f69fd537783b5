"""The students that are compared, as data: what each is to `student-train`, and the tables they stand in."""

from dataclasses import dataclass

from experiments.worth.plan import LONG_ROWS, LONGER

Options = dict[str, object]
"""Settings of student-train in place of a configuration's."""


def falling(alpha: tuple[float, float], temperature: tuple[float, float]) -> Options:
    """The teacher's weight and the temperature, each at the first step and what it falls to."""
    return {
        "distillation.alpha_init": alpha[0],
        "distillation.alpha_final": alpha[1],
        "distillation.temperature_init": temperature[0],
        "distillation.temperature_final": temperature[1],
    }


def aligned(weight: float) -> Options:
    """The Frobenius term with this weight throughout."""
    return {"distillation.frobenius.weight_init": weight, "distillation.frobenius.weight_final": weight}


FIXED_CE = falling((0, 0), (1, 1)) | aligned(0)
"""The next token's cross-entropy alone."""
ANNEALED = falling((0.8, 0.5), (2, 1))
"""As the paper has it."""
HALF = falling((0.5, 0.5), (1, 1))
"""What the paper's schedule falls to, from the first step on."""
KL_ALONE = falling((1, 1), (1, 1))
"""The teacher's distribution alone."""

SMALL_TARGETS: Options = {"targets.top_k": 4, "targets.samples": 12}
NO_SAMPLES: Options = {"targets.samples": 0}


@dataclass(frozen=True)
class Kind:
    """A student and how it is trained."""

    name: str
    words: str
    """Its name in a table."""
    config: str
    """File under configs/."""
    rows: int
    """Of a step."""
    options: tuple[tuple[str, object], ...]
    """Settings in place of the configuration's."""
    cache: str = "train"
    """The cache it is trained on; `train-exact` gives the distributions that a teacher online would, `train-long` has
    longer rows."""


def untrained(name: str, words: str, *options: Options, cache: str = "train") -> Kind:
    """A student of the demo's configuration with six blocks and 32 rows per step, and all these settings."""
    every = (UNTRAINED, *options)
    return Kind(name, words, "demo-student.yaml", 32, tuple(pair for each in every for pair in each.items()), cache)


def begun(name: str, words: str, config: str, *options: Options, rows: int = 8, cache: str = "train") -> Kind:
    """A student that begins as its teacher, as its configuration has it, with all these settings."""
    return Kind(name, words, config, rows, tuple(pair for each in options for pair in each.items()), cache)


UNTRAINED: Options = {
    "model.blocks": "null",
    "model.slstm_at": "null",
    "deepspeed": "deepspeed/zero0.json",
}
AS_TRANSFORMER: Options = {"model.preset": "transformer", "model.heads": "null"}
SLOWER: Options = {"optimizer.learning_rate": 1e-3}

PAPER = untrained("paper", "paper's student, δ-distillation, lr 3·10⁻³")
PAPER_CE = untrained("paper-ce", "the same, CE alone", FIXED_CE)
PAPER_SMALL = untrained("paper-small", "the same, 4 + 12 entries", SMALL_TARGETS)
PAPER_TOP = untrained("paper-top", "the same, the largest entries and one bucket", NO_SAMPLES)
PAPER_EXACT = untrained("paper-exact", "the same, all logits, as with the teacher online", cache="train-exact")
PAPER_SLOWER = untrained("paper-slower", "the same, lr 10⁻³", SLOWER)
PAPER_HALF = untrained("paper-half", "the same, α = ½ and T = 1 throughout", HALF)
PAPER_UNALIGNED = untrained("paper-unaligned", "the same, the Frobenius term's weight on CE", aligned(0))
TRANSFORMER = untrained("transformer", "transformer, δ-distillation, lr 10⁻³", AS_TRANSFORMER, SLOWER)
"""At the better of two learning rates: with the paper's student's, some seeds end half a nat higher."""
TRANSFORMER_CE = untrained("transformer-ce", "the same, CE alone", AS_TRANSFORMER, SLOWER, FIXED_CE)
TRANSFORMER_FASTER = untrained("transformer-faster", "transformer, lr 3·10⁻³", AS_TRANSFORMER)
TRANSPLANT = begun("transplant", "transplant, ½ CE + ½ KL", "transplant.yaml")
TRANSPLANT_CE = begun("transplant-ce", "transplant, CE alone after the transfer", "transplant.yaml", FIXED_CE)
TRANSPLANT_KL = begun("transplant-kl", "the same, KL alone", "transplant.yaml", KL_ALONE)
TRANSPLANT_ANNEALED = begun("transplant-annealed", "the same, the paper's α and T", "transplant.yaml", ANNEALED)
TRANSPLANT_ALIGNED = begun("transplant-aligned", "the same with the Frobenius term", "transplant.yaml", aligned(0.2))
HYBRID = begun("hybrid", "hybrid, KL", "hybrid.yaml")
FINDING: Options = {"model.attention_at": "[7, 8, 17, 18, 21, 23]"}
"""The layers of SmolLM2-135M-Instruct that find facts, by `experiments.attending`; other teachers have others."""
HYBRID_ATTENDING = begun("hybrid-attending", "hybrid, 6 of 30 layers keep their attention, KL", "hybrid.yaml", FINDING)
HYBRID_LONG = begun(
    "hybrid-long", "the same, in rows eight times as long", "hybrid.yaml", FINDING, rows=8 // LONGER, cache=LONG_ROWS
)
HYBRID_CE = begun("hybrid-ce", "hybrid, CE alone after the transfer", "hybrid.yaml", FIXED_CE)

KINDS = (
    PAPER,
    TRANSFORMER,
    HYBRID,
    HYBRID_ATTENDING,
    HYBRID_LONG,
    TRANSPLANT,
    PAPER_CE,
    TRANSFORMER_CE,
    PAPER_SLOWER,
    TRANSFORMER_FASTER,
    PAPER_EXACT,
    PAPER_SMALL,
    PAPER_TOP,
    HYBRID_CE,
    TRANSPLANT_CE,
    PAPER_HALF,
    PAPER_UNALIGNED,
    TRANSPLANT_KL,
    TRANSPLANT_ANNEALED,
    TRANSPLANT_ALIGNED,
)
"""All of them, those that matter most first."""

EXAMINED = (PAPER, TRANSFORMER, TRANSPLANT, TRANSPLANT_KL, HYBRID, HYBRID_ATTENDING, HYBRID_LONG)
"""Those whose tasks are measured, with the first seed."""

TABLES = {
    "The paper's student and a transformer of its size": (
        PAPER,
        TRANSFORMER,
        PAPER_SLOWER,
        TRANSFORMER_FASTER,
    ),
    "Distillation from the cache and cross-entropy alone": (PAPER, PAPER_CE),
    "The same for the transformer": (TRANSFORMER, TRANSFORMER_CE),
    "What the targets' bytes do": (PAPER, PAPER_EXACT, PAPER_SMALL, PAPER_TOP),
    "The schedule and the Frobenius term": (PAPER, PAPER_HALF, PAPER_UNALIGNED),
    "The same for a transplant": (TRANSPLANT, TRANSPLANT_KL, TRANSPLANT_ANNEALED, TRANSPLANT_ALIGNED),
    "Students that begin as their teacher": (
        TRANSPLANT,
        TRANSPLANT_CE,
        HYBRID,
        HYBRID_CE,
        HYBRID_ATTENDING,
        HYBRID_LONG,
    ),
}
