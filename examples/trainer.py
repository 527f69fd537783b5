"""transformers' Trainer: python examples/trainer.py CACHE STUDENT OUT [EPOCHS].

`torchrun --nproc-per-node 8 examples/trainer.py …` trains on several GPUs. Run again, it goes on from its checkpoint.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from cached_distillation import CacheDataset, CachedDistillation


class DistillationTrainer(CachedDistillation, Trainer):
    """The Trainer, with the teacher's distributions in place of labels alone."""


cache, student, out, *rest = sys.argv[1:]
trainer = DistillationTrainer(
    AutoModelForCausalLM.from_pretrained(student),
    TrainingArguments(
        out,
        num_train_epochs=int(rest[0]) if rest else 1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="epoch",
        report_to=[],
    ),
    train_dataset=CacheDataset(cache),
    processing_class=AutoTokenizer.from_pretrained(student),
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(out))
trainer.save_model()
