"""What the cache and its students are worth, through the commands that users run: `make worth`."""
