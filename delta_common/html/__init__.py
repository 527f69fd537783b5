"""Pages and charts for a browser, in which no text from outside can act."""
