"""Reads a corpus and cuts it into rows of tokens."""
