"""The command lines of the student: train, evaluate, report, export, generate."""
