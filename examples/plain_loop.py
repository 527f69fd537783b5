"""A training loop of one's own: python examples/plain_loop.py CACHE STUDENT OUT [EPOCHS].

The student is a causal LM of transformers with the teacher's tokenizer. Run again, it goes on where it was stopped.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cached_distillation import CacheDataset, CacheLoader, causal_lm_loss, step_counts

cache, student, out, *rest = sys.argv[1:]
epochs = int(rest[0]) if rest else 1
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(student)
model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).to(device)
dataset = CacheDataset(cache, tokenizer=tokenizer)
loader = CacheLoader(dataset, batch_size=4, accumulation=2, num_workers=2, pin_memory=device == "cuda")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

parts = {"model": model, "optimizer": optimizer, "loader": loader}
state = Path(out) / "state.pt"
if state.exists():
    kept = torch.load(state, map_location=device)
    for name, part in parts.items():
        part.load_state_dict(kept[name])

while loader.epoch < epochs:
    for step in loader.steps():
        counts = step_counts(step)
        total = 0.0
        for batch in step:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                loss = causal_lm_loss(model, batch.to(device), alpha=0.7, temperature=1.5, counts=counts)
            loss.total.backward()
            total += loss.total.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {total:.4f}", flush=True)
    state.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: part.state_dict() for name, part in parts.items()}, state)

model.save_pretrained(out)
tokenizer.save_pretrained(out)
