"""Builds a cache: rows, teacher, targets, shards. `job` is the page to read first."""
