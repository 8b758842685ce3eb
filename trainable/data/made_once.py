"""Folders that are made once, by one process while the others wait: whole or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from trainable.errors import DataError


def make_once(
    target: Path, make: Callable[[Path], None], is_whole: Callable[[], bool] | None = None
) -> Path:
    """Return the folder `target`, made by one process while the others wait: whole or absent."""
    is_whole = is_whole or target.exists
    if is_whole():
        return target
    temporary = target.with_name(target.name + ".tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if is_whole():
                return target
            shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
            try:
                make(temporary)
                for path in [*temporary.rglob("*"), temporary]:
                    _fsync(path)
                if target.exists():
                    shutil.rmtree(target)
                temporary.rename(target)
                _fsync(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"the cache {target.parent} cannot be written ({error}): free some space, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
