"""Tasks of lm-eval, answered by our own likelihood and generation: by runs, exports and teachers alike."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from delta_common.errors import UserError
from student.evaluate.tasks.answers import Scores
from student.inference.generate import Sampling, generate_all
from student.inference.likelihood import log_probabilities
from student.inference.load import Writer
from student.inference.tokenizer import encode_prompt
from student.run.records import JsonObject

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

YAML = (".yaml", ".yml")
INSTALL = "pip install lm-eval"
WRITTEN_TOKENS = 256
"""Longest answer of a task that does not say."""


def require_lm_eval(names: Sequence[str]) -> None:
    """Raise `UserError` where lm-eval is not installed, naming the tasks that only it could know."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"--tasks {','.join(names)}: none of our own, and lm-eval is not installed; {INSTALL}, or give all, "
            "arithmetic, copying, cloze, names, needle, writing or a file of JSON lines"
        )


def harness_scores(writer: Writer, names: Sequence[str], limit: int | None = None) -> dict[str, Scores]:
    """For each task, by name, the metrics that are means over examples, by example.

    A name is lm-eval's, or a YAML file of a task. Raises `UserError` for one that lm-eval does not know or cannot load,
    and for a task without such a metric.
    """
    import lm_eval

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = [_task(name) for name in names]
    try:
        found = lm_eval.simple_evaluate(_model(writer), tasks=tasks, limit=limit, bootstrap_iters=0)
    except UserError:
        raise
    # A task may be of any code, and may load its data from anywhere.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--tasks {','.join(names)}: lm-eval cannot run that ({said}); see `lm-eval ls tasks`"
        ) from error
    return {name: _scores(name, samples, found["configs"][name]) for name, samples in found["samples"].items()}


def _task(name: str) -> str | JsonObject:
    if Path(name).suffix not in YAML:
        return name
    try:
        said = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--tasks {name}: not readable as YAML ({error}); give a task of lm-eval") from error
    if not isinstance(said, dict) or "task" not in said:
        raise UserError(f"--tasks {name}: no `task` in it; give a task as lm-eval writes them")
    return said


def _scores(name: str, samples: Sequence[JsonObject], config: JsonObject) -> Scores:
    """By metric, and by filter where there are several: an example appears once for each."""
    others = {each["metric"] for each in config.get("metric_list", []) if each.get("aggregation", "mean") != "mean"}
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    found: Scores = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if metric not in others and isinstance(sample[metric], int | float):
                key = metric if len(filters) == 1 else f"{metric}, {sample['filter']}"
                found.setdefault(key, []).append(float(sample[metric]))
    if not found:
        raise UserError(f"--tasks {name}: none of its metrics is a mean over examples; leave it out")
    return found


def _model(writer: Writer) -> "LM":
    """A model as lm-eval calls one."""
    from lm_eval.api.model import TemplateLM

    class Model(TemplateLM):  # type: ignore[misc]
        tokenizer = writer.tokenizer

        @property
        def eot_token_id(self) -> int:
            return 0 if writer.stop_token is None else writer.stop_token

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
            tokens = encode_prompt(writer.tokenizer, string)
            prefix = len(encode_prompt(writer.tokenizer, ""))
            return tokens[prefix:] if add_special_tokens is False else tokens

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
        ) -> list[tuple[float, bool]]:
            known = log_probabilities(writer.student, [[*before, *after] for _, before, after in requests])
            lengths = [len(after) for _, _, after in requests]
            return [
                (float(found[len(found) - n :].double().sum()), bool(likeliest[len(found) - n :].all()))
                for n, (found, likeliest) in zip(lengths, known, strict=True)
            ]

        def loglikelihood_rolling(self, requests: Sequence["Instance"], **_: object) -> list[float]:
            rows = [(None, [self.eot_token_id], self.tok_encode(r.args[0], add_special_tokens=False)) for r in requests]
            return [total for total, _ in self._loglikelihood_tokens(rows)]

        def generate_until(self, requests: Sequence["Instance"], **_: object) -> list[str]:
            return [_written(writer, *request.args) for request in requests]

    return Model()


def _written(writer: Writer, prompt: str, said: JsonObject) -> str:
    """What is written after a prompt, up to the first of the texts that end it."""
    until = said.get("until") or []
    sampling = Sampling(float(said.get("temperature") or 0.0) if said.get("do_sample") else 0.0)
    tokens = encode_prompt(writer.tokenizer, prompt)
    length = int(said.get("max_gen_toks", WRITTEN_TOKENS))
    (own,) = generate_all(
        writer.student, [tokens], max_new_tokens=length, sampling=sampling, stop_token=writer.stop_token
    )
    text: str = writer.tokenizer.decode(own, skip_special_tokens=True)
    for end in [until] if isinstance(until, str) else until:
        text = text.partition(end)[0] if end else text
    return text
