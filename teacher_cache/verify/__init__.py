"""Whether a cache is intact and true, and rebuilding what is not."""
