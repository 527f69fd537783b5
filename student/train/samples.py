"""Samples of a student's text, which continue held-out beginnings."""

from student.inference.generate import generate_tokens
from student.inference.text_stream import Decoder
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
    return [_sample(run, tokenizer, cache, row) for row in range(0, len(cache), -(-len(cache) // SAMPLES))]


def _sample(run: Run, tokenizer: Decoder, cache: Cache, row: int) -> Sample:
    cached = cache[row]
    first_label = int(cached.loss_mask.argmax()) + 1
    # Of a conversation all up to its first answer.
    beginning = min(PROMPT_TOKENS, int(cached.loss_mask.sum()) + 1) if cached.role is None else first_label
    prompt = [int(token) for token in cached.tokens[:beginning]]

    def continued(temperature: float) -> str:
        stop = cache.manifest.eos_token_id
        written = generate_tokens(
            run.student, prompt, max_new_tokens=WRITTEN_TOKENS, temperature=temperature, seed=row, stop_token=stop
        )
        return tokenizer.decode(written)

    return Sample(prompt=tokenizer.decode(prompt), likeliest=continued(0.0), drawn=continued(1.0))
