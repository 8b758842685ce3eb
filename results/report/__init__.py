"""What a search found, as people look at it: tables, pictures."""
