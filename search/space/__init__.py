"""What to try: a user's space file, read, checked, and asked for one configuration a trial."""
