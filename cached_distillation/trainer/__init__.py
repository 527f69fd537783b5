"""For trainers derived from that of transformers: a mixin, and what it needs."""
