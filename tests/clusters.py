"""Ray clusters of several nodes, which ask for a token as every Ray of ours does."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ray.cluster_utils import Cluster

from search.cluster import joined
from search.cluster.settings import authentication


@contextmanager
def ray_cluster(**head_node_args: object) -> Iterator[Cluster]:
    """Start a head node, whose token this process and those it starts have meanwhile."""
    with pytest.MonkeyPatch.context() as patch, authentication("token", secrets.token_hex(32)):
        patch.setattr(joined, "ANSWER_LIMIT_S", 60.0)  # on a busy machine, too
        head = {"include_dashboard": False, **head_node_args}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster
        finally:
            cluster.shutdown()
