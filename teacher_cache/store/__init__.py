"""Where a cache's objects lie: in a local folder or an object store."""
