"""Other processes of a test, which do not import torch and Optuna once more each."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def other_processes() -> ForkServerContext:
    """Return a context whose processes are forked from one that has imported what they need.

    It has no other thread, and each process has its own number and dies its own death.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainable.model.inputs", "search.study.study"])
    return context
