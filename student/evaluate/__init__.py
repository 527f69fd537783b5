"""What a trained student is worth on held-out rows."""
