"""An exported student, in transformers and by itself."""
