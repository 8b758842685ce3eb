"""The options that say where trials and refits run, with one meaning and one help."""

import argparse
from typing import Any

from trainable.errors import UserError

PILOT = "auto"


def add_place(add: Any, *, has_pilot: bool) -> None:
    """Add --address, --cpus-per-trial and --gpus-per-trial to a command line.

    Args:
        add: `add_argument` of a parser or a group.
        has_pilot: Whether the share of a GPU may be found by a pilot.
    """
    add("--address", metavar="ADDR", help="of a Ray cluster (default: this machine)")
    add("--cpus-per-trial", type=float, metavar="F", help="(default 1)")
    add("--gpus-per-trial", metavar=f"F|{PILOT}" if has_pilot else "F",
        help="(default: a whole one if there are any)"
        + (f"; {PILOT}: by a short pilot" if has_pilot else ""))  # fmt: skip


def share_of(args: argparse.Namespace, *, has_pilot: bool) -> float | str | None:
    """Return --gpus-per-trial, and check --cpus-per-trial.

    Raises:
        UserError: A value that cannot be meant.
    """
    cpus, text = args.cpus_per_trial, args.gpus_per_trial
    if cpus is not None and not 0 < cpus <= 4096:
        raise UserError(f"--cpus-per-trial must be above 0, but got {cpus:g}")
    if text is None:
        return None
    if has_pilot and text == PILOT:
        return PILOT
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(
            f"--gpus-per-trial must be {f'{PILOT} or ' if has_pilot else ''}0 to 1, as a trial "
            f"trains on one GPU, but got {text!r}"
        )
    return value
