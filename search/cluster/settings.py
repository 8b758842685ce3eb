"""What Ray is told before it is imported: other modules import it after this one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Ray reads these when it is imported or started: its own output and usage reports are off, the
# driver's signal handling is ours, and Tune's file loggers would repeat what the study holds.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, no GPU seen
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
os.environ.update(_ENVIRONMENT)

# One heap for all threads of a worker, see `trainable.memory`. Read when a process starts, and
# Ray's own threads have their heaps before any code of ours runs.
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}

import ray  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._raylet import (  # type: ignore[attr-defined]  # noqa: E402
    AuthenticationTokenLoader,
    Config,
)

from trainable.errors import UserError  # noqa: E402
from trainable.urls import hidden  # noqa: E402

# Ray keeps the driver's command line with its job, where every node can read it.
_command_line: Callable[[], str] = ray._private.utils.get_entrypoint_name
ray._private.utils.get_entrypoint_name = lambda: hidden(_command_line())

# A Ray of our own listens on the loopback interface alone, as it does on macOS and Windows.
ray_constants.ENABLE_RAY_CLUSTER = False


class ClusterError(UserError):
    """A cluster that cannot be reached, or cannot run what was asked."""


@contextmanager
def authentication(mode: str, token: str | None = None) -> Iterator[None]:
    """Have Ray, here and in processes started meanwhile, ask for tokens (mode `token`) or not.

    Args:
        mode: `token` or `disabled`.
        token: Null: the one that Ray finds by itself.
    """
    ours = {"RAY_AUTH_MODE": mode} | ({} if token is None else {"RAY_AUTH_TOKEN": token})
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    _read_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_authentication()


def _read_authentication() -> None:
    """Make Ray read the environment again; the mode first, which says whether a token is needed."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def say_unfollowed(who: str, note: Callable[[str], None]) -> None:
    """Tell `note` where the environment wants no tokens, of what is asked by one nonetheless."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        note(f"RAY_AUTH_MODE={mode} is not followed: {who} asks for its token")


def reasons_of(error: BaseException) -> str:
    """Return an error's message and those of its causes, on one line."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(reasons)
