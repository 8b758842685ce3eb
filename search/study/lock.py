"""One driver per search: two would hand out and tell each other's trials."""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import optuna
import psutil
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from upath import UPath

from results.database import patiently
from search.internals import engine_of
from trainable.errors import UserError

LEASE_S = 60.0
"""A driver on another machine that was not heard of for so long is taken for dead."""
BEAT_S = 10.0
POLL_S = 0.5
"""Between two looks at another machine's lease."""

_DRIVERS = sa.Table(
    "noveltune_drivers",
    sa.MetaData(),
    sa.Column("study", sa.String(512), primary_key=True),  # one row, so one holder
    sa.Column("holder", sa.String(32), nullable=False),
    sa.Column("host", sa.String(256), nullable=False),
    sa.Column("machine", sa.String(256), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started", sa.String(64), nullable=False),
    sa.Column("beat", sa.DateTime(timezone=True), nullable=False),  # by the database's clock
)


class LockError(UserError):
    """Another driver runs this search."""


class LeaseLostError(LockError):
    """This driver was taken for dead, and another one runs the search."""


Check = Callable[[], None]
"""Raises LeaseLostError where this driver may write no more."""


@contextmanager
def only_driver(
    folder: UPath, study: optuna.Study, note: Callable[[str], None] = lambda line: None
) -> Iterator[Check]:
    """Hold the search's lock, and give what is to be called before every write.

    It is a file where the search's folder is on a disk, and a lease in the study's database where
    that is not a file in this folder: other folders may have the same study. A lease of another
    machine is watched until it is renewed, or has ended: a batch system that moves a search starts
    it elsewhere within seconds of a driver's death, and only once.

    Args:
        folder: Of the search.
        study: Of the search.
        note: Told that it waits.

    Raises:
        LockError: Another driver holds it.
    """
    with contextlib.ExitStack() as held:
        if isinstance(folder, Path):
            lock = filelock.FileLock(folder / "driver.lock")
            try:
                held.enter_context(lock.acquire(blocking=False))
            except filelock.Timeout:
                raise LockError(f"{folder}: another driver is running this search") from None
        engine = engine_of(study)
        if engine is None or _is_within(engine.url, folder):
            yield _nothing_to_check
        else:
            yield held.enter_context(_leased(engine, study.study_name.partition("~")[0], note))


def _nothing_to_check() -> None:
    """A lock on a file ends with its process: it cannot be lost."""


def _is_within(url: sa.URL, folder: UPath) -> bool:
    if url.get_backend_name() != "sqlite" or not url.database or not isinstance(folder, Path):
        return False
    return Path(url.database).resolve().parent == folder.resolve()


@dataclass(frozen=True)
class _Me:
    """A process, told from every other: a number alone is given again, also after a restart."""

    host: str
    machine: str
    pid: int
    started: str


def _me() -> _Me:
    pid = os.getpid()
    return _Me(os.uname().nodename, _machine(), pid, _started(pid) or "")


def _machine() -> str:
    """Return what names this boot of this machine, and the space of its process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{uuid.getnode()} {psutil.boot_time():.0f}"


def _started(pid: int) -> str | None:
    """Return when a process of this machine started, as text to compare; None: it has ended."""
    try:
        # State and ticks since boot: fields 3 and 22, after the name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # Z, X: a killed one that its parent does not take note of, as in many containers.
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return None


@contextmanager
def _leased(engine: sa.Engine, study: str, note: Callable[[str], None]) -> Iterator[Check]:
    me, holder = _me(), uuid.uuid4().hex
    with contextlib.suppress(DBAPIError):  # made by another driver at this moment
        _DRIVERS.create(engine, checkfirst=True)
    _take(engine, study, holder, me, note)
    mine = (_DRIVERS.c.study == study) & (_DRIVERS.c.holder == holder)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            # A database that is away: the next beat tells, and the check before every write.
            with contextlib.suppress(DBAPIError), engine.begin() as connection:
                connection.execute(_DRIVERS.update().where(mine).values(beat=sa.func.now()))

    def is_mine() -> bool:
        with engine.connect() as connection:
            return connection.execute(sa.select(_DRIVERS.c.pid).where(mine)).first() is not None

    def check() -> None:
        if not patiently(is_mine):
            raise LeaseLostError(
                f"{study}: this driver was not heard of for {LEASE_S:.0f} s, and another one runs "
                "the search now; nothing more is written here"
            )

    def release() -> None:
        with engine.begin() as connection:
            connection.execute(_DRIVERS.delete().where(mine))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(DBAPIError):  # it ends by itself
            release()


def _take(engine: sa.Engine, study: str, holder: str, me: _Me, note: Callable[[str], None]) -> None:
    """Make the study's row this driver's, if it is nobody's or a dead driver's.

    The database decides: a second row of one study cannot be, and a row is taken over only from
    the holder that was found dead.
    """
    values = {"holder": holder, **vars(me), "beat": sa.func.now()}
    with contextlib.suppress(IntegrityError), engine.begin() as connection:
        connection.execute(_DRIVERS.insert().values(study=study, **values))
        return
    row = _dead_holder(engine, study, me, note)
    if row is None:
        _take(engine, study, holder, me, note)
        return
    with engine.begin() as connection:
        as_found = (_DRIVERS.c.study == study) & (_DRIVERS.c.holder == row.holder)
        taken = connection.execute(_DRIVERS.update().where(as_found).values(**values)).rowcount
    if taken != 1:
        raise LockError("another driver started this search at the same moment")


def _dead_holder(engine: sa.Engine, study: str, me: _Me, note: Callable[[str], None]) -> Any:
    """Return the study's row once its holder is dead; null: it has given it back."""
    first = None
    while True:
        with engine.begin() as connection:
            columns = (*_DRIVERS.c, sa.func.now().label("now"))
            row = connection.execute(sa.select(*columns).where(_DRIVERS.c.study == study)).first()
        if row is None or not _is_alive(row, me):
            return row
        who = f"another driver, process {row.pid} on {row.host}, is running this search"
        if row.machine == me.machine or (first and first != (row.holder, row.beat)):
            raise LockError(who)
        if first is None:
            first = (row.holder, row.beat)
            note(f"{who}, or is dead: this shows within {LEASE_S:.0f} s")
        time.sleep(POLL_S)


def _is_alive(row: "sa.Row[tuple[object, ...]]", me: _Me) -> bool:
    if row.machine == me.machine:
        return bool(_started(row.pid) == row.started)
    return _seconds_between(row.beat, row.now) < LEASE_S


def _seconds_between(earlier: datetime, later: datetime) -> float:
    return (later.replace(tzinfo=None) - earlier.replace(tzinfo=None)).total_seconds()
