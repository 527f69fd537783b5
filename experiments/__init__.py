"""Does it work? Students trained in many ways on the same rows, three seeds each, and tables of what came out."""
