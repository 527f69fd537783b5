"""What a machine can do at most, and how much of it a model uses."""
