"""Other processes of a test, which do not import torch and Optuna once more each."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def other_processes() -> ForkServerContext:
    """Return a context whose processes are forked from one that has imported what they need.

    It has no other thread, and each process has its own number and dies its own death. What the
    processes run is in those modules of tests, which each would otherwise import for itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.trainable.model.test_inputs", "tests.search.test_resume"]
    )
    return context
