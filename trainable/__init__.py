"""Trains one configuration: plain PyTorch, no Ray, no Optuna, no MLflow."""
