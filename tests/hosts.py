"""Two machines with names and addresses of their own, and one cable between them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}
_NAMED = 'hostname "$0" && exec "$@"'


@dataclass(frozen=True)
class Hosts:
    """The hosts `left` and `right`: network namespaces, which share this machine's files."""

    spaces: dict[str, str]

    def on(self, host: str, *words: str) -> list[str]:
        """Return a command that runs on a host, as the very process that is started."""
        inside = ["ip", "netns", "exec", self.spaces[host], "unshare", "--uts"]
        return [*inside, "sh", "-c", _NAMED, host, *words]

    def plug(self, *, is_in: bool) -> None:
        """Pull the cable out on the right, or put it in again."""
        state = "up" if is_in else "down"
        _ip("-n", self.spaces["right"], "link", "set", "cable", state)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make two hosts, and take them down; skip a test that cannot."""
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("hosts need root, ip of iproute2, unshare and hostname")
    spaces = {host: f"noveltune-{os.getpid()}-{host}" for host in ADDRESSES}
    try:
        for space in spaces.values():
            if not _can("netns", "add", space):
                pytest.skip("network namespaces are not allowed here")
        left, right = spaces.values()
        _ip("-n", left, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", right)
        for host, space in spaces.items():
            _ip("-n", space, "address", "add", f"{ADDRESSES[host]}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", space, "link", "set", device, "up")
        yield Hosts(spaces)
    finally:
        for space in spaces.values():
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", space)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _can(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0
