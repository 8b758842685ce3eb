"""What Ray needs of a machine is looked at before it starts, and what is missing is said."""

import resource
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from search.cluster.own import MIB, check_host
from search.cluster.settings import ClusterError

Usage = namedtuple("Usage", "total used free")


def lines_with(
    patch: pytest.MonkeyPatch, *, shared: int = 500, free: int = 500, files: int = 4096
) -> list[str]:
    """Return what is said of a machine with so many MiB and open files."""
    lines: list[str] = []
    room = {"/dev/shm": shared}
    patch.setattr(shutil, "disk_usage", lambda at: Usage(0, 0, room.get(str(at), free) * MIB))
    patch.setattr(resource, "getrlimit", lambda which: (256, files))
    check_host(Path("/tmp"), lines.append)
    return lines


def test_machine_that_has_what_ray_needs_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_with(monkeypatch) == []
    assert lines_with(monkeypatch, files=resource.RLIM_INFINITY) == []


@pytest.mark.skipif(sys.platform != "linux", reason="Ray takes /dev/shm on Linux alone")
def test_little_shared_memory_is_said_and_its_objects_need_room_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (line,) = lines_with(monkeypatch, shared=64)
    assert line.startswith("/dev/shm has 64 MiB free, and Ray's objects take 100 MiB: they go to")
    with pytest.raises(ClusterError, match=r"Ray needs 200 MiB in /tmp, which has 150 MiB free"):
        lines_with(monkeypatch, shared=64, free=150)


def test_full_folder_for_sockets_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ClusterError, match=r"which has 3 MiB free: make room .* RAY_TMPDIR"):
        lines_with(monkeypatch, free=3)


def test_few_open_files_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines_with(monkeypatch, files=512)
    assert line.startswith("a process may open 512 files here, and one of Ray's may need 1024")
