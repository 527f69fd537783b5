"""What runs the recurrences over a sequence."""
