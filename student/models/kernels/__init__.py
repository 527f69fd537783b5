"""Fast paths of the recurrences, beside their naive twins."""
