"""Fast forms of xLSTM's recurrences, with the package's own parameters and mathematics."""
