"""From the path of a cache to its rows."""
