"""Held-out measures in words, in the order they are shown, with how a number is written."""

MEASURE_WORDS = {
    "cross_entropy": ("cross-entropy, nats per token", "{:.4f}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "kl": ("KL from the teacher at T = 1, nats", "{:.4f}"),
    "agreement": ("same first choice as the teacher", "{:.2%}"),
    "accuracy": ("first choice is the next token", "{:.2%}"),
    "calibration_error": ("calibration error, 15 bins of equal width", "{:.2%}"),
}
"""Measured of a student while it trains, and of its teacher where the cache allows."""

ADAPTIVE_WORDS = {"adaptive_calibration_error": ("calibration error, 15 bins of equal mass", "{:.2%}")}
"""Measured by `student-eval` alone: it needs all positions at once."""
