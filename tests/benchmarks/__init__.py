"""How fast a search is, measured against the script that the tutorials would have one write."""
