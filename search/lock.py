"""One driver per search: two would hand out and tell each other's trials."""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import optuna
import psutil
from upath import UPath

from trainable.errors import UserError

LEASE_S = 60.0
"""A driver on another machine that was not heard of for so long is taken for dead."""
BEAT_S = 10.0

_KEY = "driver"


class LockError(UserError):
    """Another driver runs this search."""


@contextmanager
def only_driver(folder: UPath, study: optuna.Study) -> Iterator[None]:
    """Hold the search's lock: a file where its folder is on a disk, else a lease in its study.

    Raises:
        LockError: Another driver holds it.
    """
    if not isinstance(folder, Path):
        with _lease(study):
            yield
        return
    lock = filelock.FileLock(folder / "driver.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise LockError(f"{folder}: another driver is running this search") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lease(study: optuna.Study) -> Iterator[None]:
    holder = study.user_attrs.get(_KEY)
    if holder and _is_alive(holder):
        raise LockError(
            f"another driver, process {holder['pid']} on {holder['host']}, is running this search; "
            f"if it is dead, its lease ends within {LEASE_S:.0f} s"
        )
    mine = {"id": uuid.uuid4().hex, "host": os.uname().nodename, "pid": os.getpid()}
    study.set_user_attr(_KEY, {**mine, "time_s": time.time()})
    if study.user_attrs[_KEY]["id"] != mine["id"]:
        raise LockError("another driver started this search at the same moment")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(Exception):  # a database that is away; the next beat tells
                study.set_user_attr(_KEY, {**mine, "time_s": time.time()})

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        study.set_user_attr(_KEY, {**mine, "time_s": 0.0})


def _is_alive(holder: dict[str, object]) -> bool:
    if holder["host"] == os.uname().nodename:
        return float(str(holder["time_s"])) > 0 and psutil.pid_exists(int(str(holder["pid"])))
    return time.time() - float(str(holder["time_s"])) < LEASE_S
