"""What was tried and what was learnt: Optuna's study, its storage and its lock."""
