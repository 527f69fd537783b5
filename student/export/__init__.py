"""A trained student written as a model for transformers."""
