"""An export under lm-eval's `hf` model: its numbers are the student's own, with lm-eval and by the calls it makes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

import student.transformers
from student.inference.generate import generate_tokens
from student.model.student import Student
from tests.helpers.small_students import ROUNDING, WIDTH, small_model
from tests.helpers.tokenizers_for_tests import EOS, byte_tokenizer

TEXTS = ("Once upon a time", "a", "the quick brown fox jumps")
CHOICES = (" there", " was it")
NEW_TOKENS = 8
TASKS = {
    "choices": "output_type: multiple_choice\ntarget_delimiter: ''\ndoc_to_text: '{{text}}'\n"
    "doc_to_target: '{{answer}}'\ndoc_to_choice: '{{choices}}'\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: byte_perplexity}]",
    "writing": "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: ''\n"
    f"generation_kwargs: {{until: ['<never>'], max_gen_toks: {NEW_TOKENS}, do_sample: false}}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
}
EVALUATE = """
import json, sys
import student.transformers, lm_eval
from lm_eval.tasks import TaskManager
export, folder, *tasks = sys.argv[1:]
found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": export, "device": "cpu"}, tasks=tasks, batch_size=2, log_samples=True,
    task_manager=TaskManager(include_path=folder, include_defaults=False), bootstrap_iters=0,
)
print(json.dumps({task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()}))
"""


@pytest.fixture(scope="module", params=ROUNDING)
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm_eval") / "export"
    model = small_model(request.param, vocab_size=EOS + 1, padded_vocab_size=288, eos_token_id=EOS, pad_token_id=EOS)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(export: Path) -> Student:
    found: Student = AutoModelForCausalLM.from_pretrained(export).student
    return found


def log_likelihood(student: Student, beginning: list[int], end: list[int]) -> float:
    """Of `end` after `beginning`, position by position in float64."""
    tokens = torch.tensor([beginning + end])
    with torch.no_grad():
        chances = student.logits(student(tokens)).double().log_softmax(-1)[0]
    return sum(float(chances[len(beginning) - 1 + place, token]) for place, token in enumerate(end))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_gives_the_students_own_numbers(export: Path, student: Student, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "choices": CHOICES, "answer": 0}) for text in TEXTS]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    for name, said in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}"
        (tmp_path / f"{name}.yaml").write_text(f"task: local_{name}\n{data}\ntest_split: test\n{said}\n")
    command = [sys.executable, "-c", EVALUATE, str(export), str(tmp_path), *(f"local_{name}" for name in TASKS)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment = {**os.environ, **offline, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    encode, decode = byte_tokenizer().encode, byte_tokenizer().decode
    for row, text in enumerate(TEXTS):
        for place, choice in enumerate(CHOICES):
            expected = log_likelihood(student, encode(text), encode(choice))
            assert found["local_choices"][row][place][0][0] == pytest.approx(expected, rel=1e-5)
        rolling = log_likelihood(student, [EOS], encode(text))
        assert found["local_rolling"][row][0][0] == pytest.approx(rolling, rel=1e-5)
        written = generate_tokens(student, encode(text), max_new_tokens=NEW_TOKENS, stop_token=EOS)
        assert found["local_writing"][row][0][0] == decode(written)


class _Never(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: object, **more: object) -> Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_the_calls_it_makes_give_the_students_own_numbers(export: Path, student: Student) -> None:
    """Whether lm-eval is installed or not: rows filled up with zeros on the right, prompts padded on the left."""
    config = AutoConfig.from_pretrained(export, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(export, dtype="auto", trust_remote_code=False).eval()
    assert (config.hidden_size, model.config.vocab_size, model.dtype) == (WIDTH, EOS + 1, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(export)
    encoded = [tokenizer.encode(text) for text in TEXTS]
    filled = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.long)
    for row, tokens in enumerate(encoded):
        filled[row, : len(tokens)] = torch.tensor(tokens)
    with torch.no_grad():
        chances = model(filled).logits.double().log_softmax(-1)
    for row, tokens in enumerate(encoded):
        picked = [float(chances[row, place, token]) for place, token in enumerate(tokens[1:])]
        assert sum(picked) == pytest.approx(log_likelihood(student, tokens[:1], tokens[1:]), rel=1e-5)
    tokenizer.padding_side = "left"
    batch = tokenizer(list(TEXTS), padding="longest", return_tensors="pt")
    longest = batch["input_ids"].shape[1]
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_length=longest + NEW_TOKENS,
        stopping_criteria=StoppingCriteriaList([_Never()]),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        do_sample=False,
    )
    for row, tokens in enumerate(encoded):
        expected = generate_tokens(student, tokens, max_new_tokens=NEW_TOKENS, stop_token=EOS)
        assert written[row, longest : longest + len(expected)].tolist() == expected
