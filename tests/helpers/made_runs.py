"""Runs as a report reads them, with numbers that a test can foretell."""

from dataclasses import replace
from pathlib import Path

from student.run.files import RunFiles, RunSummary, Sample, TrainedCache
from student.run.records import StepCost
from tests.helpers.small_training import small_settings

STEPS = 40
NAMES = (
    "loss",
    "cross_entropy",
    "kl",
    "frobenius",
    "gradient_norm",
    "alpha",
    "temperature",
    "beta",
    "learning_rate",
    "transfer",
)


def a_run(
    path: Path, *, factor: float = 1.0, steps: int = STEPS, finished: bool = True, words: str = "text"
) -> RunFiles:
    """Every measure at step s is factor × (1 + its number + 1 / s)."""
    metrics = [
        {"step": s, "tokens": 100} | {name: factor * (1 + n + 1 / s) for n, name in enumerate(NAMES)}
        for s in range(1, steps + 1)
    ]
    held_out = {"cross_entropy": 5.0, "perplexity": 148.4, "kl": 2.0, "agreement": 0.2, "accuracy": 0.1}
    evaluations = [
        {"step": s, "cache": "f00d", "rows": 4, "calibration_error": 0.1, **held_out} for s in (0, steps // 2, steps)
    ]
    summary = RunSummary(
        cache=f"caches/{words}",
        cache_fingerprint="beef" * 16,
        teacher=words,
        teacher_weights_sha256="1",
        tokenizer_sha256="2",
        context="row",
        steps=steps,
        trainable_parameters=10,
        total_parameters=20,
        teacher_measures={"cross_entropy": 2.5, "perplexity": 12.2},
        samples=[Sample(prompt=words, likeliest=words, drawn=words)],
    )
    costs = [StepCost(s, 100, 0.5, 0.1, 10**9, "1 × " + words, mfu=0.251) for s in range(1, steps + 1)]
    settings = small_settings(f"--optimizer.learning_rate={factor}")
    return RunFiles(path, settings, metrics, evaluations, costs, summary if finished else None)


def a_run_on_two_caches(path: Path) -> RunFiles:
    """`a_run` on a first cache with F and a second without, measured on two held-out caches; their figures differ."""
    run = a_run(path)
    assert run.summary is not None

    def of(number: int, line: dict[str, float]) -> dict[str, float | None]:
        terms = {name: line[name] + number for name in ("cross_entropy", "kl")}
        return {"rows": 3 - number, "tokens": 60, **terms, "frobenius": None if number else line["frobenius"]}

    caches = tuple(
        TrainedCache(
            path=f"caches/{name}",
            fingerprint=name * 64,
            teacher="text",
            rows=100,
            share=share,
            passes=1.2,
            has_states=name == "a",
        )
        for name, share in (("a", 0.6), ("b", 0.4))
    )
    evaluations = [
        {**record, "cache": name, "path": f"held-out/{name}", "kl": record["kl"] + number}
        for record in run.evaluations
        for number, name in enumerate(("f00d", "cafe"))
    ]
    teacher = {"f00d": {"cross_entropy": 2.5}, "cafe": {"cross_entropy": 2.25}}
    summary = run.summary.model_copy(update={"caches": caches, "teacher_measures_by_cache": teacher})
    metrics = [{**line, "by_cache": [of(0, line), of(1, line)]} for line in run.metrics]
    return replace(run, metrics=metrics, evaluations=evaluations, summary=summary, provenance=summary)
