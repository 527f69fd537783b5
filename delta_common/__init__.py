"""What the builder and the student share: command lines, errors, settings, files, progress, pages."""
