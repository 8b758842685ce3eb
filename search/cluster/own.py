"""A Ray of the search's own, on this machine: nobody else's, and for nobody else."""

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from search.cluster.settings import (
    WORKER_ENVIRONMENT,
    ClusterError,
    authentication,
    reasons_of,
    say_unfollowed,
)

import ray  # isort: skip  (after search.cluster.settings, which sets what it reads)

LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
"""Images and features are memory-mapped files, so objects are small."""
MAX_TEMPORARY_BYTES = 26
"""Of a path to which Ray appends 77 bytes for a socket; macOS takes 103 bytes, Linux 107."""

OWNER_FILE = "noveltune.lock"
"""In the folder of Ray's sockets: held as long as their driver lives."""


@contextmanager
def own_ray(num_cpus: int | None, note: Callable[[str], None]) -> Iterator[None]:
    """Start a cluster on this machine, with a token that its processes inherit and nobody else."""
    say_unfollowed("a search's own Ray", note)
    with sockets(note) as folder, authentication("token", secrets.token_hex(32)):
        try:
            ray.init(
                address="local",  # never somebody else's cluster that happens to run here
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                _temp_dir=folder,
            )
        except Exception as error:
            raise ClusterError(
                f"Ray does not start on this machine: {reasons_of(error)}"
            ) from error
        yield


@contextmanager
def sockets(note: Callable[[str], None]) -> Iterator[str]:
    """Give a folder for Ray's sockets and logs that is nobody else's, and delete it at the end.

    Those of drivers that were killed are deleted, too.
    """
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(folder)) > MAX_TEMPORARY_BYTES:
        note(f"Ray's sockets are in /tmp: their names would be too long in {folder}")
        folder = "/tmp"
    _remove_orphans(Path(folder))
    try:
        made = tempfile.mkdtemp(prefix="ray-", dir=folder)
    except OSError as error:
        raise ClusterError(f"Ray needs a folder for its sockets: {error}") from error
    # It has its name once it is held: a lock that nobody holds is one of the dead.
    lock = filelock.FileLock(Path(made) / ".making")
    try:
        with lock:
            (Path(made) / ".making").rename(Path(made) / OWNER_FILE)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)  # its processes may still be writing there


def _remove_orphans(folder: Path) -> None:
    """Delete what killed drivers of this user left: the end of a process ends its lock."""
    for file in folder.glob(f"ray-*/{OWNER_FILE}"):
        with contextlib.suppress(OSError, filelock.Timeout):
            made = file.parent
            if made.is_symlink() or made.lstat().st_uid != os.getuid():
                continue
            with filelock.FileLock(file, blocking=False):
                shutil.rmtree(made, ignore_errors=True)
