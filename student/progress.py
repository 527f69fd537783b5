"""How far training has come: batches taken, and how many of them moved the parameters."""
