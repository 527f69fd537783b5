"""Where a cache's objects lie: a folder, or an object store."""
