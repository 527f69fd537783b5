"""What a cache holds, for a person: tables, rows as text, a page for a browser."""
