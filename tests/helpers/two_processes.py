"""One step and one epoch of the small Llama in each process that torchrun started: `two_processes.py CACHE OUT`.

Writes to OUT what the first process finds: rows, losses, gradients by how the model is wrapped, a Trainer's weights.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from cached_distillation import CacheDataset, CachedDistillation, CacheLoader, causal_lm_loss, step_counts
from tests.helpers.small_llama import COEFFICIENTS, small_llama


class DistillationTrainer(CachedDistillation, Trainer):
    """As a user writes it."""


def fsdp(model: nn.Module, sizes: int, *, head: bool) -> nn.Module:
    """Shard the layers, the head by itself or with the rest, and the rest."""
    mesh = init_device_mesh("cpu", (sizes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if head:
        fully_shard(model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def step(model: nn.Module, loader: CacheLoader, sizes: int) -> Tensor:
    """Go backward through one step; the loss over all processes."""
    batches = next(loader.steps())
    counts = step_counts(batches)
    total = torch.zeros(())
    for batch in batches:
        loss = causal_lm_loss(model, batch, **vars(COEFFICIENTS), counts=counts)
        (loss.total * sizes).backward()
        total += loss.total.detach()
    distributed.all_reduce(total)
    return total


def trained(dataset: CacheDataset, out: Path, sizes: int) -> list[Tensor]:
    """Weights behind an epoch of a Trainer, 8 rows a step over all processes."""
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = TrainingArguments(
        str(out.parent), per_device_train_batch_size=4 // sizes, gradient_accumulation_steps=2, learning_rate=1e-2,
        num_train_epochs=2, logging_steps=4, eval_strategy="epoch", per_device_eval_batch_size=5, **quiet,
    )  # fmt: skip
    trainer = DistillationTrainer(small_llama(72), args, train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    logged = [{name: value for name, value in line.items() if "runtime" not in name and "second" not in name}
              for line in trainer.state.log_history]  # fmt: skip
    return logged, [parameter.detach() for parameter in trainer.accelerator.unwrap_model(trainer.model).parameters()]


def main(cache: str, out: Path) -> None:
    """Everything."""
    distributed.init_process_group("gloo")
    sizes, dataset, found = distributed.get_world_size(), CacheDataset(cache), {}
    wraps = {"ddp": DistributedDataParallel}
    if sizes > 1:
        wraps |= {
            name: lambda model, head=name == "fsdp-head": fsdp(model, sizes, head=head)
            for name in ("fsdp", "fsdp-head")
        }
    for name, wrap in wraps.items():
        bare = small_llama(72)
        loss = step(wrap(bare), CacheLoader(dataset, batch_size=4 // sizes, accumulation=2), sizes)
        pairs = {name: parameter.grad for name, parameter in bare.named_parameters()}
        whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in pairs.items()}
        found[name] = {"loss": loss, "gradients": whole}
    rows = torch.cat([batch.input_ids for batch in CacheLoader(dataset, batch_size=4)])
    every = [torch.zeros_like(rows) for _ in range(sizes)]
    distributed.all_gather(every, rows)
    found["rows"] = torch.cat(every)
    found["trainer"] = trained(dataset, out, sizes)
    if distributed.get_rank() == 0:
        torch.save(found, out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
