"""Decides what to train and runs it on a cluster."""
