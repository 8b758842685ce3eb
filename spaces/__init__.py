"""One question per file: what to search, how long, by which metric."""
