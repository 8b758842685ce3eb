"""Reads what searches left behind: tables, pictures, predictions."""

import trainable as trainable  # sets what OpenMP reads when torch is imported
