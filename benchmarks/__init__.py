"""What is measured: each file a benchmark, run by its name."""
