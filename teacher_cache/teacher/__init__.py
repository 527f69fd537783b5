"""The teacher model: loading it, and running it over rows of tokens."""
