"""Accelerate with FSDP: torchrun --nproc-per-node 8 examples/accelerate_fsdp.py CACHE STUDENT OUT [EPOCHS]."""

import sys

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from transformers import AutoModelForCausalLM, AutoTokenizer

from cached_distillation import CacheDataset, CacheLoader, causal_lm_loss, step_counts

cache, student, out, *rest = sys.argv[1:]
epochs = int(rest[0]) if rest else 1
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
on_gpu = torch.cuda.is_available()
accelerator = Accelerator(cpu=not on_gpu, fsdp_plugin=plugin, mixed_precision="bf16" if on_gpu else "no")

tokenizer = AutoTokenizer.from_pretrained(student)
model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model, optimizer = accelerator.prepare(model, optimizer)

# The loader gives each process its own rows, so Accelerate need not prepare it.
dataset = CacheDataset(cache, tokenizer=tokenizer)
loader = CacheLoader(dataset, batch_size=2, accumulation=2)

while loader.epoch < epochs:
    for step in loader.steps():
        counts = step_counts(step, accelerator.device)
        total = torch.zeros((), device=accelerator.device)
        for batch in step:
            loss = causal_lm_loss(model, batch.to(accelerator.device), alpha=0.7, temperature=1.5, counts=counts)
            accelerator.backward(loss.total * accelerator.num_processes)  # gradients are averaged over processes
            total += loss.total.detach()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"loss {accelerator.reduce(total).item():.4f}", flush=True)

accelerator.unwrap_model(model).save_pretrained(out, state_dict=accelerator.get_state_dict(model))
if accelerator.is_main_process:
    tokenizer.save_pretrained(out)
accelerator.end_training()
