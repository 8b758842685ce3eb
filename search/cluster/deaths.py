"""Why a trial's process is gone: it died by itself, or its node went away under it."""

import contextlib
import socket
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray._private.state import actors
from ray.exceptions import NodeDiedError, RayActorError

ANSWER_LIMIT_S = 3.0
"""How long a node has to accept a connection before it is taken to be gone."""
_NODE_HAS_DIED = "node has died"
"""How Ray's head words the cause of an actor's death by its node; there is no field for it."""


def is_node_gone(error: BaseException | None, node_id: str) -> bool:
    """Return whether a process is gone with its node.

    The death of a drained node's actor says so (`preempted`), that of a dead one's in words, once
    the head has missed the node for long enough (here some 20 s). Before, Ray only knows that the
    actor is out of reach (`ActorUnavailableError`), of a killed process as of a lost machine: a
    node whose raylet accepts a connection is there, and so its process died by itself.

    Args:
        error: By which Ray told; null: of another kind.
        node_id: Of the node that it was on; empty: it had not started.
    """
    if isinstance(error, NodeDiedError):
        return True
    if isinstance(error, RayActorError) and (error.preempted or _NODE_HAS_DIED in str(error)):
        return True
    return bool(node_id) and not _answers(node_id)


def node_of(error: BaseException | None) -> str:
    """Return the id of the node where an actor's process is gone; empty: Ray does not say."""
    actor_id = getattr(error, "actor_id", None)
    if not actor_id:
        return ""
    return str(actors(actor_id).get("Address", {}).get("NodeID", ""))


def _answers(node_id: str) -> bool:
    for node in ray.nodes():
        if node["NodeID"] == node_id and node["Alive"]:
            where = (node["NodeManagerAddress"], node["NodeManagerPort"])
            with contextlib.suppress(OSError), socket.create_connection(where, ANSWER_LIMIT_S):
                return True
    return False


def error_of(trial: Any) -> BaseException | None:
    """Return the error that Tune wrote down before it told the scheduler; null: of another kind."""
    name = trial.pickled_error_file
    if name is None or not Path(name).exists():
        return None
    error = cloudpickle.loads(Path(name).read_bytes())
    return error if isinstance(error, BaseException) else None
