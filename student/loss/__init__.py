"""The loss of δ-distillation."""
