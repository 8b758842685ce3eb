"""Somebody else on this machine: another home, and nothing that our environment says of Ray."""

import os
from pathlib import Path


def outsider(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of somebody else on this machine, who gives up after one attempt."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return own | {"HOME": str(home), "RAY_NUM_REDIS_GET_RETRIES": "1"} | more
