"""The command lines of the student's side."""
