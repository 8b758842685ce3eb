"""Decides what to train and runs it on a cluster."""

import trainable as trainable  # sets what OpenMP reads when torch is imported
