"""Whether a cache is what was written, and mending it."""
