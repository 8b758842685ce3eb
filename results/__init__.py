"""Reads what searches left behind: tables, pictures, predictions."""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"] and Path(sys.path[0]) != (_root := Path(__file__).parents[1]):
    # `python -m results.report`: a trainable.py in the working folder is not the package.
    sys.path[:] = [*sys.path[1:], str(_root), sys.path[0]]

import trainable as trainable  # sets what OpenMP reads when torch is imported
