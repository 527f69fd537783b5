"""The model card of an export: what it is, where it comes from, how good it is, how to use it."""

import json
from collections.abc import Mapping

import torch

from student.inference.load import STUDENT_PREFIX
from student.model.frozen import FROZEN_NAMES
from student.run.files import RunFiles, RunSummary
from student.run.measure_words import MEASURE_WORDS
from student.run.records import JsonObject
from student.run.student_words import beginning_words, stage_words, student_words
from teacher_cache.format.manifest import Manifest

CARD_FILE = "README.md"
OURS = "import student.transformers  # of delta-cache: transformers then knows this model"
PIPELINE = (
    "from transformers import pipeline\n\n"
    'write = pipeline("text-generation", model="PATH-OF-THIS-FOLDER")\n'
    'print(write("Once", max_new_tokens=40)[0]["generated_text"])'
)
LAST_STEP = ("loss", "cross_entropy", "kl", "frobenius", "temperature", "alpha")


def model_card(files: RunFiles, summary: RunSummary, manifest: Manifest, dtypes: dict[str, torch.dtype]) -> str:
    """The card as Markdown; `dtypes` are those of the stored tensors."""
    teacher, model = manifest.teacher.name, files.settings.model
    if model.begins_as_teacher:
        tag, title, of_teacher = (
            "linear-attention",
            f"A student that began as {teacher}",
            "What the layers began with, embedding",
        )
    else:
        tag, title, of_teacher = "xlstm", f"An xLSTM distilled from {teacher}", "Embedding"
    about = [
        f"{summary.trainable_parameters:,} trained of {summary.total_parameters:,} parameters: "
        f"{student_words(model)}, between the teacher's own embedding and LM head, which are frozen. Trained by "
        "δ-distillation (Distil-xLSTM, [arXiv 2503.18565](https://arxiv.org/abs/2503.18565)) from a cache of the "
        "teacher's outputs. "
        f"{of_teacher}, LM head and tokenizer are the teacher's, so the teacher's licence applies to them.",
        _use(has_tokenizer=manifest.tokenizer.has_files, code=f"{OURS}\n{PIPELINE}"),
    ]
    return _card(tag, title, about, _precision(files, dtypes), files, summary, manifest)


def plain_card(files: RunFiles, summary: RunSummary, manifest: Manifest, dtype: torch.dtype) -> str:
    """The card of a model of transformers as Markdown; `dtype` is that of its tensors."""
    model, teacher = files.settings.model, manifest.teacher.name
    what = "A transformer" if model.hf is None else model.hf
    whose = (
        "Its tokenizer is the teacher's, its embedding and LM head are its own."
        if model.hf
        else "Embedding, LM head and tokenizer are the teacher's, so the teacher's licence applies to them."
    )
    about = [
        f"{summary.trainable_parameters:,} trained of {summary.total_parameters:,} parameters: {student_words(model)}. "
        "Trained by δ-distillation (Distil-xLSTM, [arXiv 2503.18565](https://arxiv.org/abs/2503.18565)) from a cache "
        f"of the teacher's outputs. {whose}",
        _use(has_tokenizer=manifest.tokenizer.has_files, code=PIPELINE),
    ]
    kind = str(dtype).removeprefix("torch.")
    numbers = f"All weights are stored as {kind}; the student computed in {files.settings.training.precision}."
    return _card("transformers", f"{what} distilled from {teacher}", about, numbers, files, summary, manifest)


def _card(
    tag: str,
    title: str,
    about: list[str],
    numbers: str,
    files: RunFiles,
    summary: RunSummary,
    manifest: Manifest,
) -> str:
    parts = [
        _front_matter(tag),
        f"# {title}",
        *about,
        "## Where it comes from\n\n" + _table(_provenance(files, summary, manifest)),
        "## Held out\n\n" + _held_out(files, summary),
        "## Last step of training\n\n" + _table(_last_step(files)),
        "## Numbers in the file\n\n" + numbers,
        "## Settings\n\n```json\n" + json.dumps(files.settings.model_dump(mode="json"), indent=1) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(tag: str) -> str:
    return f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- {tag}\n- distillation\n---"


def _use(*, has_tokenizer: bool, code: str) -> str:
    if not has_tokenizer:
        return "The cache it was trained on was synthetic and had no tokenizer: it takes tokens, not text."
    return f"```python\n{code}\n```\n\nOr `student-generate PATH-OF-THIS-FOLDER --prompt Once`."


def _provenance(files: RunFiles, summary: RunSummary, manifest: Manifest) -> dict[str, str]:
    teacher, rows = manifest.teacher, manifest.rows
    return {
        "teacher": teacher.name,
        "teacher's revision": teacher.revision or "–",
        "teacher's weights, sha256": teacher.weights_sha256,
        "teacher's configuration, sha256": teacher.config_sha256,
        "teacher ran in": teacher.dtype,
        "tokenizer, sha256": manifest.tokenizer_sha256,
        "cache, fingerprint": summary.cache_fingerprint,
        "corpus": str(manifest.corpus.get("source", "–")),
        "rows": f"{rows.count:,} of {rows.seq_len:,} positions, {rows.mode}, context {rows.context}",
        "began with": beginning_words(files.settings.model, summary.begun_from),
        **{
            f"cache {number}": f"{cache.share:.2%} of the rows, {cache.passes:.2f} passes over {cache.rows:,}; "
            f"teacher {cache.teacher}; fingerprint {cache.fingerprint}"
            for number, cache in enumerate(summary.caches, start=1)
        },
        "steps": f"{summary.steps:,}",
        **({"stages": stage_words(summary.stages)} if len(summary.stages) > 1 else {}),
    }


def _held_out(files: RunFiles, summary: RunSummary) -> str:
    if not files.evaluations:
        return "Not measured: the run had no `evaluation.cache`."
    teacher = summary.teacher_measures_by_cache
    return "\n\n".join(
        _measured(
            max(each.records, key=lambda found: int(found["step"])), teacher.get(key, summary.teacher_measures or {})
        )
        for key, each in files.held_out.items()
    )


def _measured(last: JsonObject, teacher: Mapping[str, float]) -> str:
    """The numbers on one held-out cache."""
    lines = ["| | student | teacher |", "|---|---:|---:|"]
    for name, (words, form) in MEASURE_WORDS.items():
        cells = [form.format(found[name]) if found.get(name) is not None else "–" for found in (last, teacher)]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    where = f"Over {last['rows']:,} rows of the cache {last['cache'][:12]}…, after {last['step']:,} steps."
    return "\n".join([where, "", *lines])


def _last_step(files: RunFiles) -> dict[str, str]:
    last = files.metrics[-1]
    known = {name: last[name] for name in LAST_STEP if last.get(name) is not None}
    return {name.replace("_", "-"): f"{value:.4f}" for name, value in known.items()}


def _precision(files: RunFiles, dtypes: dict[str, torch.dtype]) -> str:
    def words(*, trained: bool) -> str:
        frozen = {f"{STUDENT_PREFIX}{name}" for name in FROZEN_NAMES.values()}
        kinds = {str(kind).removeprefix("torch.") for name, kind in dtypes.items() if (name not in frozen) == trained}
        return " and ".join(sorted(kinds))

    return (
        f"Embedding and LM head are stored as the cache has them ({words(trained=False)}), trained parameters as the "
        f"student had them when training ended ({words(trained=True)}; it computed in "
        f"{files.settings.training.precision}). It loads in float32 unless told otherwise; there every number is exact."
    )


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
