"""What a cache holds, as tables, text and a page."""
