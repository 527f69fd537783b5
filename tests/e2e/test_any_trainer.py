"""A cache in other people's loops: the same step in each, two processes, and the examples as a user runs them."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, TrainerCallback

from cached_distillation import CacheDataset, CachedDistillation, CacheLoader, causal_lm_loss, step_counts
from tests.helpers import ROOT
from tests.helpers.small_llama import COEFFICIENTS, assert_same_gradients, gradients_of, naive_step, small_llama
from tests.helpers.small_training import make_uneven_cache
from tests.helpers.transplant_cache import make_transplant_cache

WITHOUT = "TRL and PEFT are not installed (pip install '.[trl]')"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache`, and its `teacher`, which serves as the student too."""
    folder = tmp_path_factory.mktemp("any-trainer")
    make_transplant_cache(folder)
    return folder


OF_PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a process knows the others."""


def run(*command: object, processes: int = 1) -> str:
    """What a script prints."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    # Trainings that ran in this process before have left their own here.
    ours = {name: value for name, value in os.environ.items() if name not in OF_PROCESSES}
    environment = ours | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
    }
    arguments = [*(launcher if processes > 1 else []), *map(str, command)]
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class Gradients(TrainerCallback):
    """Keeps those of the first step."""

    def on_pre_optimizer_step(
        self, args: object, state: object, control: object, model: nn.Module, **_: object
    ) -> None:
        self.found = gradients_of(model)


def sft_step(made: Path, out: Path, lora: Any) -> tuple[float, dict[str, Tensor], nn.Module]:
    """Loss and gradients of a step of TRL's SFTTrainer, and its model as it began."""
    trl = pytest.importorskip("trl", reason=WITHOUT)
    torch.manual_seed(0)

    class DistillationTrainer(CachedDistillation, trl.SFTTrainer):
        """As a user writes it."""

    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "save_strategy": "no"}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0}
    dataset, gradients = CacheDataset(made / "cache"), Gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL's own settings, on which transformers is stricter by now
        args = trl.SFTConfig(str(out), dataloader_pin_memory=False, logging_steps=1, **sizes, **quiet)
        trainer = DistillationTrainer(
            small_llama(288),
            args,
            train_dataset=dataset,
            distillation=COEFFICIENTS,
            processing_class=AutoTokenizer.from_pretrained(made / "teacher"),
            peft_config=lora,
            callbacks=[gradients],
        )
        start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
    trainer.model.load_state_dict(start)
    return trainer.state.log_history[0]["loss"], gradients.found, trainer.model


@pytest.mark.parametrize("adapters", [False, True])
def test_a_step_of_trl_is_the_naive_twins(made: Path, tmp_path: Path, adapters: bool) -> None:
    lora = None
    if adapters:
        peft = pytest.importorskip("peft", reason=WITHOUT)
        lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    found, gradients, model = sft_step(made, tmp_path, lora)
    batches = next(CacheLoader(CacheDataset(made / "cache"), batch_size=2, accumulation=2).steps())
    model.zero_grad()
    loss, expected = naive_step(model, model.get_output_embeddings(), batches)
    assert found == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(gradients, expected)
    assert all(("lora" in name) == adapters for name in gradients)
    for batch in batches:
        counts = step_counts(batches)
        causal_lm_loss(model, batch, **vars(COEFFICIENTS), counts=counts).total.backward()
    assert_same_gradients(gradients_of(model), expected)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    cache = make_uneven_cache(tmp_path / "cache")
    script = ROOT / "tests" / "helpers" / "two_processes.py"
    run(script, cache, tmp_path / "two.pt", processes=2)
    two = torch.load(tmp_path / "two.pt")
    dataset = CacheDataset(cache)
    rows = torch.stack([dataset[number]["input_ids"] for number in range(len(dataset))])
    assert sorted(two["rows"].tolist()) == sorted(rows.tolist())
    model = small_llama(72)
    loss, gradients = naive_step(model, model.lm_head, next(CacheLoader(dataset, batch_size=4, accumulation=2).steps()))
    for wrapped in ("ddp", "fsdp", "fsdp-head"):
        assert float(two[wrapped]["loss"]) == pytest.approx(loss, rel=1e-5)
        assert_same_gradients(two[wrapped]["gradients"], gradients)
    run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1, script, cache, tmp_path / "one.pt")
    logged, weights = two["trainer"]
    alone_logged, alone_weights = torch.load(tmp_path / "one.pt")["trainer"]
    for ours, theirs in zip(weights, alone_weights, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    for ours, theirs in zip(logged, alone_logged, strict=True):
        for name in ours.keys() & {"loss", "cross_entropy", "kl", "eval_loss", "eval_kl", "alpha"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def example(made: Path, name: str, out: Path, *epochs: int, processes: int = 1) -> list[float]:
    """Losses that an example prints."""
    script = ROOT / "examples" / f"{name}.py"
    printed = run(script, made / "cache", made / "teacher", out, *epochs, processes=processes)
    losses = [float(loss) for loss in re.findall(r"(?:^loss |'loss': ')([0-9.]+)", printed, re.MULTILINE)]
    weights = load_file(next(out.glob("*model.safetensors")))
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    return losses


def test_a_plain_loop_and_fsdp_in_two_processes_have_the_same_losses(made: Path, tmp_path: Path) -> None:
    plain = example(made, "plain_loop", tmp_path / "plain")
    assert len(plain) == 3
    assert example(made, "accelerate_fsdp", tmp_path / "sharded", processes=2) == pytest.approx(plain, rel=1e-3)
    further = example(made, "plain_loop", tmp_path / "plain", 2)
    assert further == pytest.approx(example(made, "plain_loop", tmp_path / "whole", 2)[3:], abs=0)


def test_the_trainers_example_runs(made: Path, tmp_path: Path) -> None:
    assert len(example(made, "trainer", tmp_path / "out")) == 3


def test_the_example_with_trl_runs(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason=WITHOUT)
    pytest.importorskip("peft", reason=WITHOUT)
    assert len(example(made, "sft_lora", tmp_path / "out")) == 3
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_page_can_be_copied_from(made: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your_trainer.md").read_text(encoding="utf-8")
    loop, module, trainer = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    used = "student = StudentWithLoss(lambda ids: model.model(ids).last_hidden_state, model.lm_head)"
    called = "print(student(batch, alpha=0.5, temperature=1.0).item())"
    code = "\n".join([loop, module, used, called, trainer])
    for word, path in (("STUDENT", "teacher"), ("caches/mine", "cache"), ("OUT", "out")):
        code = code.replace(f'"{word}"', repr(str(made / path)))
    script = tmp_path / "copied.py"
    script.write_text(code.replace("num_workers=4", "num_workers=0"), encoding="utf-8")
    assert "'cross_entropy'" in run(script)


def test_a_loop_of_ones_own_needs_torch_alone() -> None:
    code = (
        "import sys, cached_distillation as c; c.CacheLoader, c.distillation_loss, c.step_counts; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'transformers', 'accelerate', 'datasets', 'deepspeed', 'trl', 'peft', 'xlstm'}))"
    )
    assert run("-c", code).strip() == "[]"
