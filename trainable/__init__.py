"""Trains one configuration: plain PyTorch, no Ray, no Optuna, no MLflow."""

import os
import sys
from pathlib import Path

# Before torch loads OpenMP. Its threads wait for each other in a loop, by default for milliseconds;
# where other processes want the cores, the one that is waited for then gets none. Measured: 256
# images by two threads beside a load of 8 take 11 to 22 s by default, 2.0 to 2.4 s so, and 1.9 to
# 2.6 s where they never loop.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

if sys.argv[:1] == ["-m"]:
    if Path(sys.path[0]) != (_root := Path(__file__).parents[1]):
        # `python -m trainable.train`: a file in the working folder is no package of this name.
        sys.path[:] = [*sys.path[1:], str(_root), sys.path[0]]

    from trainable.interrupted import answer_interrupts

    answer_interrupts()  # a command's imports take seconds
