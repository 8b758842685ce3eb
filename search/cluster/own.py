"""A Ray of the search's own, on this machine: nobody else's, and for nobody else."""

import contextlib
import logging
import os
import resource
import secrets
import shutil
import sys
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
FOLDER_BYTES = 100 * 2**20
"""What Ray writes in the folder of its sockets beside objects: logs, mostly."""
OPEN_FILES = 1024
"""Of one process; Ray raises its own limit as far as it may."""
MIB = 2**20

OWNER_FILE = "noveltune.lock"
"""In the folder of Ray's sockets: held as long as their driver lives."""


@contextmanager
def own_ray(num_cpus: int | None, note: Callable[[str], None]) -> Iterator[None]:
    """Start a cluster on this machine, with a token that its processes inherit and nobody else."""
    say_unfollowed("a search's own Ray", note)
    with sockets(note) as folder, authentication("token", secrets.token_hex(32)):
        check_host(Path(folder).parent, note)
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


def check_host(folder: Path, note: Callable[[str], None]) -> None:
    """Check that this machine has what Ray needs of it: room, shared memory, open files.

    Args:
        folder: Where Ray's own is.
        note: Told what Ray can do without.

    Raises:
        ClusterError: There is no room for what it writes.
    """
    needed = FOLDER_BYTES
    if sys.platform == "linux":
        shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0
        if shared < LOCAL_OBJECT_STORE_BYTES:
            needed += LOCAL_OBJECT_STORE_BYTES
            note(
                f"/dev/shm has {shared / MIB:.0f} MiB free, and Ray's objects take "
                f"{LOCAL_OBJECT_STORE_BYTES / MIB:.0f} MiB: they go to {folder}, which is slower. "
                "Free some, or start a container with --shm-size=1g"
            )
    free = shutil.disk_usage(folder).free
    if not free >= needed:
        raise ClusterError(
            f"Ray needs {needed / MIB:.0f} MiB in {folder}, which has {free / MIB:.0f} MiB free: "
            "make room there, or set RAY_TMPDIR to another folder with a short name"
        )
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES:
        note(
            f"a process may open {limit} files here, and one of Ray's may need {OPEN_FILES}: raise "
            "the hard limit (ulimit -Hn) if trials die as they start"
        )


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
