"""What a student is made of and how it was trained, in words, for its card and its report."""

from collections.abc import Sequence

from student.model.shape import StudentSettings
from student.run.files import Origin, PlannedStage, TrainedCache

FEWEST_STEPS = 64
"""Steps of a pool below which it is said that it is small: over 16 students were 0.16 nats worse, over 32 0.05."""
PARTS = {"mixers": "the mixers", "body": "the teacher's own weights", "all": "everything"}


def student_words(settings: StudentSettings) -> str:
    """What stands between the embedding and the LM head, or what the whole student is."""
    if settings.hf is not None:
        return f"{settings.hf}, a model of transformers of which everything is trained"
    if settings.preset == "transformer":
        return "untrained blocks of the teacher's kind, between its own embedding and LM head, which are frozen"
    if not settings.begins_as_teacher:
        return "a stack of xLSTM blocks"
    layers = ", ".join(map(str, settings.attention_at))
    kept = f"; layers {layers} keep their attention" if layers else ""
    if settings.preset == "transplant":
        return f"its teacher's layers with a recurrence in place of attention{kept}"
    sinks = f" and the first {settings.sinks}" if settings.sinks else ""
    window = f"attention over the last {settings.window} positions{sinks}"
    return f"its teacher's layers with {window} beside a recurrence{kept}"


def beginning_words(settings: StudentSettings, begun_from: Sequence[Origin]) -> str:
    """Where the weights came from that training began with; `begun_from` are the runs and exports before it."""
    first = "its teacher's weights" if settings.begins_as_teacher else "random weights"
    if settings.hf is not None and not settings.hf_random:
        first = f"the weights of {settings.hf}"
    return ", then ".join([first, *(f"{link.steps:,} steps of {link.path}" for link in begun_from)])


def stage_words(stages: Sequence[PlannedStage]) -> str:
    """What each stage of a run trained, by what and for how long."""
    return "; ".join(f"{stage.name} of {PARTS[stage.train]}, {stage.steps:,} steps" for stage in stages)


def cache_words(cache: TrainedCache) -> str:
    """What training reads of one of several caches."""
    states = "" if cache.has_states else ", no averaged hidden states, so trained without the Frobenius term"
    return f"{cache.share:.4g} of the rows from {cache.path}: {cache.rows:,} rows, {cache.passes:.2f} passes{states}"


def pool_words(path: str, pool_rows: int | None, step_rows: float) -> str | None:
    """What is to be known of a cache whose rows are permuted few at a time, a step reading `step_rows` of them."""
    if pool_rows is None or pool_rows >= FEWEST_STEPS * step_rows:
        return None
    return (
        f"{path}: {pool_rows:,} rows are permuted together, {pool_rows / step_rows:.0f} steps' worth; where documents "
        "are many rows long, that makes students worse (docs/method.md, Order); a cache of fewer bytes per token mixes "
        "more rows"
    )


def cache_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths or URLs, or all of them where two are called the same."""
    short = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return short if len(set(short)) == len(short) else list(paths)
