"""Sums of weighted values over what a position sees: all before it, a window, the nearest; each with a naive twin."""
