"""What both command lines share: one-line errors, settings from YAML, the progress line."""
