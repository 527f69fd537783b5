"""Loads the teacher model, makes sure that it can serve, and runs it over rows of tokens."""
