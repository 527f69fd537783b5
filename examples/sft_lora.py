"""TRL's SFTTrainer with LoRA: python examples/sft_lora.py CACHE STUDENT OUT [EPOCHS]. Needs trl and peft."""

import sys

import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from cached_distillation import CacheDataset, CachedDistillation


class DistillationTrainer(CachedDistillation, SFTTrainer):
    """The SFTTrainer, with the teacher's distributions in place of labels alone."""


cache, student, out, *rest = sys.argv[1:]
trainer = DistillationTrainer(
    student,
    SFTConfig(
        out,
        num_train_epochs=int(rest[0]) if rest else 1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="epoch",
        report_to=[],
    ),
    train_dataset=CacheDataset(cache),
    processing_class=AutoTokenizer.from_pretrained(student),
    peft_config=LoraConfig(r=8, target_modules="all-linear"),  # which leaves lm_head out
)
trainer.train()
trainer.save_model()
