"""What happens to memory that is freed: kept between two steps, given back between two trials."""

import contextlib
import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # as in glibc's malloc.h
_LARGE_BYTES, _LARGE_BYTES_BEFORE_2_35 = 2**30, 2**25
"""Above which a block is mapped on its own; an older glibc takes no more than its half heap."""


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of returning them to the system at every free.

    By default each activation of a few MiB is mapped anew and cleared page by page in every step.
    Training at 128 px is 1.4 to 1.6 times as fast without that (LOG.md, 2026-11-25). A thread with
    a heap of its own maps blocks above 64 MiB all the same. This call keeps threads that have none
    yet on one heap; MALLOC_ARENA_MAX=1 in the environment of a process keeps all of them there.
    Nothing happens where the C library is another.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)
        if not mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES):
            mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES_BEFORE_2_35)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Return freed memory to the system, as far as the C library can."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def forget_host_peak() -> None:
    """Have `host_peak_bytes` count from now: a process trains one trial after another."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed here
        Path("/proc/self/clear_refs").write_text("5")


def host_peak_bytes() -> int | None:
    """Return the most of the host's memory that this process had; null: not Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
