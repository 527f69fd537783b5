"""The recurrences over a whole sequence: plain torch, and Triton on a GPU."""
