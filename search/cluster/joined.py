"""A Ray cluster of others: its address, and the token that it may ask for."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from search.cluster.settings import (
    WORKER_ENVIRONMENT,
    ClusterError,
    authentication,
    reasons_of,
    say_unfollowed,
)

import ray  # isort: skip  (after search.cluster.settings, which sets what it reads)
from ray._private import services  # isort: skip

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


@contextmanager
def joined(address: str, note: Callable[[str], None]) -> Iterator[None]:
    """Connect to a cluster with a token, if it asks for one."""
    head = _head(address)
    takes_all = _takes_all(address, head)
    if takes_all:
        note(
            f"whoever reaches {head} can run code there: this Ray cluster asks for no token "
            "(see docs/cluster.md)"
        )
    else:
        say_unfollowed("this Ray cluster", note)
    with authentication("disabled" if takes_all else "token"):
        try:
            ray.init(
                address=head,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
            )
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterError(f"--address {address}: {reasons_of(error)}") from error
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
