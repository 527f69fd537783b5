"""Samples of a student's text, which continue held-out beginnings."""

from student.inference.generate import Sampling, generate_all
from student.run.files import Sample
from student.train.assemble import Run
from teacher_cache.read.cache import Cache

SAMPLES = 3
PROMPT_TOKENS = 16
WRITTEN_TOKENS = 48


def write_samples(run: Run) -> list[Sample]:
    """Beginnings of rows spread over the first held-out cache, or else the first one trained on, and how they go on.

    Empty without a tokenizer, or where each process holds only a part of the parameters.
    """
    cache = run.held_out[0] if run.held_out else run.cache
    if cache.tokenizer_folder is None or run.engine.zero_optimization_partition_weights():
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    prompts = [_beginning(cache, row) for row in range(0, len(cache), -(-len(cache) // SAMPLES))]
    asked = {"max_new_tokens": WRITTEN_TOKENS, "stop_token": cache.manifest.eos_token_id}
    written = [generate_all(run.student, prompts, sampling=Sampling(t), **asked) for t in (0.0, 1.0)]
    texts = [[tokenizer.decode(tokens) for tokens in each] for each in (prompts, *written)]
    return [
        Sample(prompt=prompt, likeliest=likeliest, drawn=drawn) for prompt, likeliest, drawn in zip(*texts, strict=True)
    ]


def _beginning(cache: Cache, row: int) -> list[int]:
    cached = cache[row]
    first_label = int(cached.loss_mask.argmax()) + 1
    # Of a conversation all up to its first answer.
    length = min(PROMPT_TOKENS, int(cached.loss_mask.sum()) + 1) if cached.role is None else first_label
    return [int(token) for token in cached.tokens[:length]]
