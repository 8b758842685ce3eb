"""Reads what searches left behind: tables, pictures, predictions."""
