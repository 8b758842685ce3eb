"""Which images there are, what is in them, and which of them train and judge."""
