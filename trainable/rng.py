"""Every random draw has its own generator, named by what it is for: no state to save or restore."""

import hashlib

import torch


def generator(*purpose: str | int) -> torch.Generator:
    """Return a CPU generator whose stream depends on `purpose` alone.

    Draws for one branch, epoch or view therefore never shift those of another, which is what
    makes a resumed trial equal to an uninterrupted one, and two models trained together equal
    to each trained alone.
    """
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
