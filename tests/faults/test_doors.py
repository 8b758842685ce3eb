"""Who may run code in a search's Ray: only who has its token, whatever the environment says."""

import contextlib
import ipaddress
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from search.cluster import own
from search.cluster.connect import connected
from search.cluster.settings import ClusterError
from tests.commands import ROOT, Command, Done, run
from tests.outsider import outsider

pytestmark = pytest.mark.xdist_group("test_doors.py")  # one process, in this order
LONG_FOLDER = "/tmp/" + "x" * 82
JOIN = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print("ran as", ray.get(ray.remote(lambda: __import__("os").getuid()).remote()))
"""


def join(address: str, folder: Path, **token: str) -> Done:
    """Try to run code in this machine's Ray from a process that would look at its loopback."""
    environment = outsider(folder, **token, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    return run(folder, "-c", JOIN, address, within=environment)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def own_address(lines: list[str]) -> Iterator[str]:
    """The address of a search's own Ray, in an environment that is against it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_AUTH_TOKEN_PATH", "/nonexistent")
        patch.setenv("RAY_TMPDIR", LONG_FOLDER)
        patch.delenv("HOME")
        with connected(None, num_cpus=1, note=lines.append):
            yield ray.get_runtime_context().gcs_address


@pytest.mark.slow
def test_reason_why_ray_does_not_start_is_given() -> None:
    """Before the tests below start one that stays."""
    with (
        pytest.raises(ClusterError, match=r"Ray does not start on this machine: .*CPU"),
        connected(None, num_cpus=-1),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("guess", [{}, {"RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_MODE": "token"}])
def test_stranger_cannot_run_code_in_a_search(
    own_address: str, guess: dict[str, str], tmp_path: Path
) -> None:
    refused = join(own_address, tmp_path, **guess)
    assert refused.code == 1
    assert "ran as" not in refused.out
    assert "InvalidAuthToken" in refused.err


@pytest.mark.slow
def test_whoever_has_the_token_can_run_code_in_a_search(own_address: str, tmp_path: Path) -> None:
    token = {n: os.environ[n] for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    assert f"ran as {os.getuid()}" in join(own_address, tmp_path, **token).out


@pytest.mark.slow
def test_a_search_s_own_ray_listens_on_the_loopback_interface_alone(own_address: str) -> None:
    ray.get(ray.remote(lambda: os.getpid()).remote())
    this = psutil.Process()
    listening = []
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker of the test before ends
            listening += [
                connection.laddr.ip
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            ]
    assert len(listening) >= 4  # GCS, raylet, worker, driver
    for address in map(ipaddress.ip_address, listening):
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.slow
def test_what_is_not_followed_is_said(own_address: str, lines: list[str]) -> None:
    assert lines == [
        "RAY_AUTH_MODE=disabled is not followed: a search's own Ray asks for its token",
        f"Ray's sockets are in /tmp: their names would be too long in {LONG_FOLDER}",
    ]


def test_folder_of_the_sockets_is_private_short_and_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG_FOLDER)
    with own.sockets(print) as folder:
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        (Path(folder) / "log").touch()
    assert not Path(folder).exists()


HOLDER = """
import os, signal, sys
from search.cluster import own
with own.sockets(print) as folder:
    print(folder, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folder_of_a_killed_driver_is_deleted_by_the_next_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        other = Path(short) / "ray-of-somebody"
        other.mkdir()
        with Command(ROOT, "-c", HOLDER) as holder:
            holder.wait_for(lambda: holder.done().out.endswith("\n"))
            held = Path(holder.done().out.strip())
            with own.sockets(print):
                assert held.exists(), "its driver lives"
            holder.tell("now")
            assert holder.ended().code == -signal.SIGKILL
        assert held.exists(), "it was killed"
        with own.sockets(print) as mine:
            assert {*Path(short).iterdir()} == {other, Path(mine)}


def test_temporary_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/nosuch")
    with (
        pytest.raises(ClusterError, match=r"Ray needs a folder for its sockets: .*'/nosuch/ray-"),
        connected(None),
    ):
        pass
