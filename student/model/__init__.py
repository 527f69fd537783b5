"""The student: blocks, frozen matrices, state."""
