"""Connect to Ray, see what the cluster has, and check every node before the first trial."""

import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Ray reads these when it is imported or started: its own output and usage reports are off, the
# driver's signal handling is ours, and Tune's file loggers would repeat what the study holds.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, no GPU seen
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
os.environ.update(_ENVIRONMENT)

# One heap for all threads of a worker, see `trainable.memory`. Read when a process starts, and
# Ray's own threads have their heaps before any code of ours runs.
_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}

import ray  # noqa: E402
from ray._private import ray_constants, services  # noqa: E402
from ray._raylet import (  # type: ignore[attr-defined]  # noqa: E402
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import GetTimeoutError  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402
from upath import UPath  # noqa: E402

from trainable.data.dataset import Data, find_data, load_data  # noqa: E402
from trainable.errors import DataError, UserError  # noqa: E402
from trainable.urls import hidden  # noqa: E402

# Ray keeps the driver's command line with its job, where every node can read it.
_command_line: Callable[[], str] = ray._private.utils.get_entrypoint_name
ray._private.utils.get_entrypoint_name = lambda: hidden(_command_line())

# A Ray of our own listens on the loopback interface alone, as it does on macOS and Windows.
ray_constants.ENABLE_RAY_CLUSTER = False

LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
"""Images and features are memory-mapped files, so objects are small."""
MAX_TEMPORARY_BYTES = 26
"""Of a path to which Ray appends 77 bytes for a socket; macOS takes 103 bytes, Linux 107."""
ANSWER_LIMIT_S = 15.0
"""How long the head of a cluster has to answer before it is taken not to be there."""

_PROBE = """
import json, os, sys
import ray
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
def attempt():
    try:
        if os.environ["RAY_AUTH_MODE"] == "token":
            if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
                return "missing"
        GcsClient(address=sys.argv[1])
        return "accepted"
    except ray.exceptions.AuthenticationError as error:
        return str(error)
first = attempt()
os.environ["RAY_AUTH_MODE"] = "token"
Config.initialize("")
AuthenticationTokenLoader.instance().reset_cache()
print(json.dumps([first, first if first == "accepted" else attempt()]))
"""
"""Asks a cluster without a token, and where it minds, with the one that Ray finds. In a process
of its own: Ray's client may wait for minutes, ends its process where it finds no token, and warns
on standard error of what is tried on purpose here."""


class ClusterError(UserError):
    """A cluster that cannot be reached, or cannot run what was asked."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of a cluster, and what it has."""

    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """The nodes that are there; a trial is on one of them."""

    nodes: tuple[Node, ...]

    @property
    def gpus(self) -> float:
        """Of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    def trials_per_gpu(self, cpus_per_trial: float) -> int:
        """Return how many trials have CPUs beside each GPU, on the node with the fewest for them.

        Nodes that hold no trial do not count; 0 where none does.
        """
        most = (int(n.cpus / n.gpus / cpus_per_trial) for n in self.nodes if n.gpus)
        return min((each for each in most if each), default=0)

    def __str__(self) -> str:
        shown = [f"{n.address} has {n.cpus:g} CPU and {n.gpus:g} GPU" for n in self.nodes[:20]]
        more = len(self.nodes) - len(shown)
        return ", ".join(shown) + (f", and {more} more nodes" if more else "")


@contextmanager
def connected(
    address: str | None, *, num_cpus: int | None = None, note: Callable[[str], None] = print
) -> Iterator[Cluster]:
    """Connect to the Ray cluster at `address`, or start one on this machine; disconnect at the end.

    One of our own takes only a token made for it, and is reached from this machine only.

    Args:
        address: Of the head node, HOST:PORT; or auto, for the cluster of this machine.
        num_cpus: Of a cluster of our own; null: all.
        note: Called with lines for a person.

    Raises:
        ClusterError: No cluster answers there, or it does not take our token.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _own(num_cpus, note) if address is None else _joined(address, note):
        try:
            yield Cluster(tuple(_node(each) for each in ray.nodes() if each["Alive"]))
        finally:
            ray.shutdown()


def _node(found: dict[str, Any]) -> Node:
    has = found["Resources"]
    return Node(
        address=found["NodeManagerAddress"], cpus=has.get("CPU", 0.0), gpus=has.get("GPU", 0.0)
    )


@contextmanager
def authentication(mode: str, token: str | None = None) -> Iterator[None]:
    """Have Ray, here and in processes started meanwhile, ask for tokens (mode `token`) or not.

    Args:
        mode: `token` or `disabled`.
        token: Null: the one that Ray finds by itself.
    """
    ours = {"RAY_AUTH_MODE": mode} | ({} if token is None else {"RAY_AUTH_TOKEN": token})
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    _read_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_authentication()


def _read_authentication() -> None:
    """Make Ray read the environment again; the mode first, which says whether a token is needed."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own(num_cpus: int | None, note: Callable[[str], None]) -> Iterator[None]:
    """Start a cluster on this machine, with a token that its processes inherit and nobody else."""
    _say_unfollowed("a search's own Ray", note)
    with _sockets(note) as folder, authentication("token", secrets.token_hex(32)):
        try:
            ray.init(
                address="local",  # never somebody else's cluster that happens to run here
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                runtime_env={"env_vars": _WORKER_ENVIRONMENT},
                _temp_dir=folder,
            )
        except Exception as error:
            raise ClusterError(f"Ray does not start on this machine: {_reasons(error)}") from error
        yield


def _say_unfollowed(who: str, note: Callable[[str], None]) -> None:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        note(f"RAY_AUTH_MODE={mode} is not followed: {who} asks for its token")


@contextmanager
def _sockets(note: Callable[[str], None]) -> Iterator[str]:
    """Give a folder for Ray's sockets and logs that is nobody else's, and delete it at the end."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(folder)) > MAX_TEMPORARY_BYTES:
        note(f"Ray's sockets are in /tmp: their names would be too long in {folder}")
        folder = "/tmp"
    try:
        made = tempfile.mkdtemp(prefix="ray-", dir=folder)
    except OSError as error:
        raise ClusterError(f"Ray needs a folder for its sockets: {error}") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)  # its processes may still be writing there


@contextmanager
def _joined(address: str, note: Callable[[str], None]) -> Iterator[None]:
    """Connect to a cluster with a token, if it asks for one."""
    head = _head(address)
    takes_all = _takes_all(address, head)
    if takes_all:
        note(
            f"whoever reaches {head} can run code there: this Ray cluster asks for no token "
            "(see README.md, On a cluster)"
        )
    else:
        _say_unfollowed("this Ray cluster", note)
    with authentication("disabled" if takes_all else "token"):
        try:
            ray.init(
                address=head,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            )
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterError(f"--address {address}: {_reasons(error)}") from error
        yield


def check_address(address: str | None) -> None:
    """Check that an address is of a kind that a search can use; it is not asked yet.

    Raises:
        ClusterError: It is Ray's client's, or no cluster's.
    """
    found = _found(address or "")
    if "://" in found:
        raise ClusterError(
            f"--address {found}: Ray's client does not place trials on nodes of their own, as a "
            "search does: run the search on a node of the cluster, with --address HOST:PORT as "
            "`ray start` printed it"
        )
    if found == "local":
        raise ClusterError("--address local: leave out --address to search on this machine")


def _found(address: str) -> str:
    """Return the address that Ray takes `auto` for, if the environment names one."""
    return os.environ.get("RAY_ADDRESS", address) if address == "auto" else address


def _head(address: str) -> str:
    """Return HOST:PORT of the head node, which something listens at.

    Raises:
        ClusterError: Nothing does, or `address` is of another kind.
    """
    check_address(address)
    try:
        head = str(services.canonicalize_bootstrap_address_or_die(_found(address)))
        end_s = time.monotonic() + ANSWER_LIMIT_S
        host, port = services.extract_ip_port(head)
        while True:
            try:
                socket.create_connection((host, port), timeout=ANSWER_LIMIT_S).close()
                return head
            except ConnectionRefusedError:  # a head that is being started
                if time.monotonic() >= end_s:
                    raise
                time.sleep(0.5)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({error})"
        ) from error


def _takes_all(address: str, head: str) -> bool:
    """Return whether the cluster asks for no token; where it does, it takes ours.

    Raises:
        ClusterError: It does not, or no cluster answers.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE, head],
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=4 * ANSWER_LIMIT_S,  # Ray's client takes seconds to start, and waits for 40
        )
        without, with_token = json.loads(asked.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise ClusterError(
            f"--address {address}: what listens there is not the head of a Ray cluster, or does "
            "not answer: pass HOST:PORT as `ray start --head` printed it"
        ) from error
    if with_token == "accepted":
        return bool(without == "accepted")
    if with_token == "missing":
        problem = "no token was found in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    else:
        found = (n for n in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(n))
        reason = with_token.partition(" Ensure that ")[0]
        problem = f"the one from {next(found, '~/.ray/auth_token')} was of no use ({reason})"
    raise ClusterError(
        f"--address {address}: the cluster asks for a token (authentication), and {problem}. Put "
        "what `ray get-auth-token` prints on the head node into ~/.ray/auth_token here"
    )


def _reasons(error: BaseException) -> str:
    """Return an error's message and those of its causes, on one line."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(reasons)


def check_packages() -> None:
    """Check that every node has this package, file for file, and what it imports.

    Raises:
        ClusterError: A node does not.
    """
    others = _other_nodes()
    if not others:
        return
    installed = _installed()
    here = installed()
    found = _on_each(others, ray.remote(num_cpus=0)(installed))
    wrong = [
        f"{node['NodeManagerAddress']} has {there}"
        for node, there in zip(others, found, strict=True)
        if there != here
    ]
    if wrong:
        raise ClusterError(
            f"every node must have what this one has, {here}, but {'; '.join(wrong)}: "
            "install the project there from the same files"
        )


def check_storage(folder: UPath) -> None:
    """Check that every node sees the same `folder`, by a file written here and read there.

    Raises:
        ClusterError: A node does not.
    """
    others = _other_nodes()
    if not others:
        return
    folder = folder.absolute()  # a worker's working directory is another
    word = uuid.uuid4().hex
    probe = folder / f".probe_{word}"
    probe.write_text(word)
    try:
        found = _on_each(others, _read, str(probe), timeout_s=60)
    finally:
        probe.unlink()
    # Nodes may share an address, so they are not told apart by it.
    blind = [
        node["NodeManagerAddress"] for node, text in zip(others, found, strict=True) if text != word
    ]
    if blind:
        raise ClusterError(
            f"--storage {folder.parent} is not the same folder on {', '.join(blind)}: "
            "pass a --storage that all nodes share"
        )


def ship_data(data: Data, cache: Path, note: Callable[[str], None]) -> Any:
    """Have every node decode the data; return what `receive_data` takes where one cannot.

    Null where every node sees the same data. Nodes that join later are taken to be like those
    that are there now.
    """
    others = _other_nodes()
    asked = (data.source, data.novel_source, cache, data.fingerprint)
    num_blind = _on_each(others, _has_data, *asked).count(False)
    if not num_blind:
        return None
    note(f"{num_blind} of {len(others) + 1} nodes do not see the data: they get them from here")
    return ray.put((replace(data, images=data.images[:0]), data.images.numpy()))


def forget_cache(cache: Path) -> None:
    """Delete a cache folder on every other node."""
    _on_each(_other_nodes(), _remove, cache)


def _other_nodes() -> list[dict[str, Any]]:
    here = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]


def _on_each(
    nodes: list[dict[str, Any]], task: Any, *arguments: Any, timeout_s: float | None = None
) -> list[Any]:
    """Return what `task` returns on every node, where they run at the same time."""
    where = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    running = [task.options(scheduling_strategy=each).remote(*arguments) for each in where]
    try:
        results: list[Any] = ray.get(running, timeout=timeout_s)
    except GetTimeoutError as error:
        late = ", ".join(node["NodeManagerAddress"] for node in nodes)
        raise ClusterError(
            f"not all of {late} answered within {timeout_s:g} s: see what they are busy with"
        ) from error
    return results


def _installed() -> Callable[[], str]:
    """Return a function that says which noveltune a node has, by version and content.

    Where it cannot be used, it says why. Ray sends a function made here whole, with the imports
    that it needs: a node may be without this module.
    """

    def installed() -> str:
        import hashlib
        import importlib
        from importlib import metadata
        from pathlib import Path

        digest = hashlib.sha256()
        try:
            for package in ("results", "search", "trainable"):
                folder = Path(importlib.import_module(package).__path__[0])
                for file in sorted(folder.rglob("*.py")):
                    digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
            importlib.import_module("search.cluster.worker")
            version = metadata.version("noveltune")
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what is wrong there)
            return f"{type(error).__name__}: {error}"
        return f"noveltune {version} ({digest.hexdigest()[:8]})"

    return installed


@ray.remote(num_cpus=0)
def _has_data(source: str, novel: str, cache: Path, fingerprint: str) -> bool:
    try:
        data = find_data(source, novel, cache, fingerprint)
        data = data or load_data(source, novel, cache, note=lambda line: None)
    except DataError:
        return False
    return data.fingerprint == fingerprint


@ray.remote(num_cpus=0)
def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@ray.remote(num_cpus=0)
def _read(file: str) -> str | None:
    path = UPath(file)
    return path.read_text() if path.exists() else None
