"""From the path or URL of a cache to its rows and its targets at any temperature."""
