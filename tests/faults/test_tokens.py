"""A cluster of others is joined with its token, if it asks for one; what is amiss is named."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from search.cluster import joined
from search.cluster.connect import connected
from search.cluster.settings import ClusterError
from tests.outsider import outsider

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
START_LIMIT_S = 240


@contextmanager
def head(home: Path, *, with_token: bool) -> Iterator[str]:
    """Start a head node as docs/cluster.md says, for a user at home in `home`; give its address."""
    if with_token:
        subprocess.run([*RAY, "get-auth-token", "--generate"], env=outsider(home), check=True,
                       capture_output=True)  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [*RAY, "start", "--head", "--block", "--num-cpus=1", f"--port={port}",
             "--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0",
             ]  # fmt: skip
    log = home / "log"
    asked = outsider(home, RAY_AUTH_MODE="token") if with_token else outsider(home)
    with (
        log.open("w") as output,
        subprocess.Popen(start, env=asked, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(START_LIMIT_S)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a cluster that asks for a token, and the home with it."""
    home = tmp_path_factory.mktemp("home")
    with head(home, with_token=True) as address:
        yield address, home


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that asks for no token."""
    with head(tmp_path_factory.mktemp("home"), with_token=False) as address:
        yield address


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and an environment that says nothing."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(joined, "ANSWER_LIMIT_S", 60.0)  # on a busy machine, too
    return tmp_path


def mistake(address: str) -> str:
    with pytest.raises(ClusterError) as raised, connected(address):
        pass
    return str(raised.value)


@pytest.mark.slow
def test_token_in_the_home_opens_a_cluster_that_asks_for_one(
    guarded: tuple[str, Path], homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, home = guarded
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    lines: list[str] = []
    with connected(address, note=lines.append) as found:
        assert [node.cpus for node in found.nodes] == [1]
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    assert lines == ["RAY_AUTH_MODE=disabled is not followed: this Ray cluster asks for its token"]
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.slow
def test_missing_token_is_named(guarded: tuple[str, Path], homeless: Path) -> None:
    address, _ = guarded
    assert mistake(address) == (
        f"--address {address}: the cluster asks for a token (authentication), and no token was "
        "found in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Put what `ray "
        "get-auth-token` prints on the head node into ~/.ray/auth_token here"
    )


@pytest.mark.slow
def test_token_of_another_cluster_is_named_with_its_place(
    guarded: tuple[str, Path], homeless: Path
) -> None:
    (homeless / ".ray").mkdir()
    (homeless / ".ray" / "auth_token").write_text("0" * 64)
    message = mistake(guarded[0])
    assert "(authentication), and the one from ~/.ray/auth_token was of no use (" in message
    assert "InvalidAuthToken" in message


@pytest.mark.slow
def test_token_file_that_cannot_be_read_is_named(
    guarded: tuple[str, Path], homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(homeless / "nosuch"))
    message = mistake(guarded[0])
    assert "the one from RAY_AUTH_TOKEN_PATH was of no use (" in message
    assert f"cannot be opened or is empty: {homeless / 'nosuch'}" in message


@pytest.mark.slow
@pytest.mark.parametrize("has_token", [False, True])
def test_cluster_without_tokens_is_joined_with_a_warning(
    has_token: bool, unguarded: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    lines: list[str] = []
    with connected(unguarded, note=lines.append):
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    assert len(lines) == 1
    assert "can run code there: this Ray cluster asks for no token" in lines[0]


def test_ray_client_is_refused_with_the_reason() -> None:
    assert "Ray's client does not place trials on nodes" in mistake("ray://127.0.0.1:10001")


def test_automatic_address_is_held_to_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    assert "Ray's client" in mistake("auto")


def test_local_address_is_refused() -> None:
    assert mistake("local") == "--address local: leave out --address to search on this machine"


@pytest.mark.parametrize("address", ["127.0.0.1:1024", "127.0.0.1", "nosuch.invalid:6379"])
def test_address_where_nothing_answers_is_refused_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined, "ANSWER_LIMIT_S", 0.1)
    assert mistake(address).startswith(f"--address {address}: no Ray cluster answers there (")


def test_address_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "ANSWER_LIMIT_S", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        message = mistake(f"127.0.0.1:{other.getsockname()[1]}")
    assert "what listens there is not the head of a Ray cluster" in message
