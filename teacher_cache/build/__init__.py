"""The building job: rows, teacher, targets, shards."""
