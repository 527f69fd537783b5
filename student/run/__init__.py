"""The files of a training run, and the student they describe."""
