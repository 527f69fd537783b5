"""Tasks of lm-eval, as it calls a model: with itself where it is installed, else with a stand-in for it."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from delta_common.errors import UserError
from student.evaluate.tasks import harness as module
from student.evaluate.tasks.answers import answer
from student.evaluate.tasks.examples import Task
from student.evaluate.tasks.harness import harness_scores, require_lm_eval
from student.evaluate.tasks.made import copying
from student.inference.generate import generate_tokens
from student.inference.load import Writer
from tests.helpers.task_writers import small_writer
from tests.helpers.tokenizers_for_tests import EOS


class _TemplateLM:
    """The part of lm-eval's class that ours is built on."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model")
    made = {name: ModuleType(name) for name in names}
    made["lm_eval.api.model"].TemplateLM = _TemplateLM  # type: ignore[attr-defined]
    for name, found in made.items():
        monkeypatch.setitem(sys.modules, name, found)
    return made["lm_eval"]


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return small_writer("hybrid", tmp_path)


def test_likelihoods_are_the_students_own(stand_in: ModuleType, writer: Writer) -> None:
    model = module._model(writer)
    asked = [(None, [1, 2, 3], [4, 5]), (None, [9], [8, 7, 6])]
    for (_, before, after), (total, likeliest) in zip(asked, model._loglikelihood_tokens(asked), strict=True):
        with torch.no_grad():
            chances = writer.student.logits(writer.student(torch.tensor([before + after])))[0].log_softmax(-1)
        picked = [float(chances[len(before) - 1 + place, token]) for place, token in enumerate(after)]
        assert total == pytest.approx(sum(picked), rel=1e-4)
        best = chances[len(before) - 1 : -1].argmax(-1).tolist()
        assert likeliest == (best == after)
    (rolling,) = model.loglikelihood_rolling([SimpleNamespace(args=("ab",))])
    assert rolling == pytest.approx(model._loglikelihood_tokens([(None, [EOS], writer.tokenizer.encode("ab"))])[0][0])


def test_text_ends_before_what_ends_it(stand_in: ModuleType, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def wrote(_: object, prompts: list[list[int]], **said: Any) -> list[list[int]]:
        asked.extend([*prompts, [said["max_new_tokens"]]])
        return [writer.tokenizer.encode("one, two\nthree")]

    monkeypatch.setattr(module, "generate_all", wrote)
    said = ({"until": ["\n", ","], "max_gen_toks": 12}, {"until": "\n"}, {})
    requests = [SimpleNamespace(args=("ab", each)) for each in said]
    assert module._model(writer).generate_until(requests) == ["one", "one, two", "one, two\nthree"]
    assert asked == [writer.tokenizer.encode("ab"), [12]] + 2 * [writer.tokenizer.encode("ab"), [256]]


def test_text_is_what_the_student_writes(stand_in: ModuleType, writer: Writer) -> None:
    tokens = generate_tokens(writer.student, writer.tokenizer.encode("ab"), max_new_tokens=5, stop_token=EOS)
    requests = [SimpleNamespace(args=("ab", {"max_gen_toks": 5}))]
    assert module._model(writer).generate_until(requests) == [writer.tokenizer.decode(tokens)]


def test_metrics_that_are_means_are_taken_by_example(stand_in: ModuleType, writer: Writer) -> None:
    samples = [
        {"filter": "none", "metrics": ["acc", "ppl", "pair"], "acc": value, "ppl": -3.0, "pair": (1, 2)}
        for value in (1.0, False, 1)
    ]
    config = {"metric_list": [{"metric": "acc", "aggregation": "mean"}, {"metric": "ppl", "aggregation": "perplexity"}]}
    found = {"samples": {"some": samples}, "configs": {"some": config}}
    stand_in.simple_evaluate = lambda model, **said: found if said["tasks"] == ["some"] else None  # type: ignore[attr-defined]
    assert harness_scores(writer, ["some"]) == {"some": {"acc": [1.0, 0.0, 1.0]}}
    twice = [{"filter": name, "metrics": ["acc"], "acc": 1.0} for name in ("strict", "loose")]
    assert module._scores("t", twice, {}) == {"acc, strict": [1.0], "acc, loose": [1.0]}
    with pytest.raises(UserError, match="none of its metrics is a mean"):
        module._scores("t", [{"filter": "none", "metrics": ["ppl"], "ppl": -3.0}], config)


def test_what_lm_eval_cannot_run_is_one_line(stand_in: ModuleType, writer: Writer) -> None:
    def fail(model: object, **_: object) -> None:
        raise KeyError("no such\ntask")

    stand_in.simple_evaluate = fail  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"--tasks nothing: lm-eval cannot run that .*; see `lm-eval ls tasks`"):
        harness_scores(writer, ["nothing"])


@pytest.mark.parametrize(("text", "said"), [("{", "not readable as YAML"), ("a: 1", "no `task` in it")])
def test_a_faulty_file_of_a_task_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        module._task(str(path))


def test_a_file_of_a_task_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: mine\noutput_type: multiple_choice\n")
    assert module._task(str(path)) == {"task": "mine", "output_type": "multiple_choice"}
    assert module._task("hellaswag") == "hellaswag"


def test_without_lm_eval_its_tasks_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lm_eval" else object())
    with pytest.raises(
        UserError, match="--tasks a,b: none of our own, and lm-eval is not installed; pip install lm-eval"
    ):
        require_lm_eval(["a", "b"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_itself_gives_the_scores_of_our_own_tasks(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    examples = copying(6).examples
    lines = [{"text": e.prompt, "choices": e.choices, "place": e.choices.index(e.answer)} for e in examples]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "task.yaml").write_text(
        "task: local_copying\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ntarget_delimiter: ''\ndoc_to_text: '{{text}}'\n"
        "doc_to_target: '{{place}}'\ndoc_to_choice: '{{choices}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    found = harness_scores(writer, [str(tmp_path / "task.yaml")])
    assert found == {"local_copying": {"acc": answer(writer, Task("copying", examples))["likelihood"]}}
