"""Benchmarks of caches of conversations."""
