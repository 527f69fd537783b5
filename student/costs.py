"""What a step cost: a line of `costs.jsonl`, apart from `metrics.jsonl`, which a continued run repeats to the byte."""
