"""Renders conversations, says which of their tokens the assistant speaks, and cuts rows of them."""
