"""Every node of a cluster: checked before its first trial, and given the data."""

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from upath import UPath

from search.cluster.deaths import is_node_gone
from search.cluster.settings import ClusterError
from trainable.data.dataset import Data, find_data, load_data, store_data
from trainable.errors import DataError, UserError, reason_of

import ray  # isort: skip  (after search.cluster.settings, which sets what it reads)
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]  # isort: skip
from ray.exceptions import GetTimeoutError, RayError, RayTaskError  # isort: skip
from ray.experimental import internal_kv  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip


ANSWER_LIMIT_S = 60.0
"""How long a node has for what takes it moments, before it is taken to be of no use."""
_CHECKED = "noveltune_checked"
"""Namespace in Ray's key-value store: a key for each node that a driver has checked."""


class NodesGoneError(ClusterError):
    """Nodes went away while they were asked something: `nodes`, as Ray describes them."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        super().__init__("it went away while it was checked")
        self.nodes = nodes


class Nodes:
    """The nodes that trials run on: each is checked before it trains, one that joins later, too."""

    def __init__(self, folder: UPath, data: Data, cache: Path, note: Callable[[str], None]) -> None:
        """Check no node yet.

        Args:
            folder: Of the search.
            data: As the driver sees them.
            cache: Folder of decoded images and of features, on every node.
            note: Called with lines for a person.
        """
        self._folder, self._data, self._cache, self._note = folder, data, cache, note
        self._checked: set[str] = set()
        self.unfit: set[str] = set()
        """Ids of those that get no trials: they went away, or joined and cannot run any."""

    def start(self) -> None:
        """Check the nodes there are, and give them the data.

        Ray lists one that died for a while yet: it is said, and left out.

        Raises:
            ClusterError: One of them cannot run trials of this search.
        """
        while True:
            nodes = [node for node in _alive() if node["NodeID"] not in self.unfit]
            try:
                self._check(nodes, timeout_s=None)
                return
            except NodesGoneError as error:
                for node in error.nodes:
                    self._leave_out(node, error)

    def is_unfit(self, node_id: str) -> bool:
        """Return whether a node cannot run trials; one that joined is checked now."""
        if node_id not in self._checked | self.unfit:
            for node in _alive():
                if node["NodeID"] == node_id:
                    self._check_late(node)
        return node_id in self.unfit

    @property
    def selector(self) -> dict[str, str]:
        """What Ray is asked of a node, so that it places nothing on one that gets no trials."""
        return {RAY_NODE_ID_KEY: f"!in({','.join(sorted(self.unfit))})"} if self.unfit else {}

    def forget(self, *, data: bool) -> None:
        """Undo what was left on the cluster, with `data` also every other node's cache."""
        with contextlib.suppress(RayError, ClusterError):  # what is gone has forgotten
            for node_id in self._checked:
                internal_kv._internal_kv_del(_key(node_id), namespace=_CHECKED)
            if data:
                others = [node for node in other_nodes() if node["NodeID"] in self._checked]
                _on_each(others, _remove, self._cache)

    def _check_late(self, node: dict[str, Any]) -> None:
        try:
            self._check([node], timeout_s=ANSWER_LIMIT_S)
        except (ClusterError, RayError, OSError) as error:
            self._leave_out(node, error)

    def _leave_out(self, node: dict[str, Any], error: Exception) -> None:
        self.unfit.add(node["NodeID"])
        self._note(
            f"{node['NodeManagerAddress']} gets no trials, until Ray is started there anew: "
            f"{reason_of(error)}"
        )

    def _check(self, nodes: list[dict[str, Any]], timeout_s: float | None) -> None:
        others = _others(nodes)
        check_packages(others, timeout_s)
        check_storage(self._folder, others)
        self._give_data(others, timeout_s)
        for node in nodes:
            self._checked.add(node["NodeID"])
            internal_kv._internal_kv_put(_key(node["NodeID"]), b"", namespace=_CHECKED)

    def _give_data(self, nodes: list[dict[str, Any]], timeout_s: float | None) -> None:
        """Have the nodes decode the data; those that do not see them get the driver's."""
        asked = (self._data.source, self._data.novel_source, self._cache, self._data.fingerprint)
        has_data = _on_each(nodes, _has_data, *asked, timeout_s=timeout_s)
        blind = [node for node, has in zip(nodes, has_data, strict=True) if not has]
        if blind:
            num = f"{len(blind)} of {len(_alive())} nodes"
            self._note(f"sending the data to {num}, where they are not")
            images = self._data.images
            sent = ray.put((replace(self._data, images=images[:0]), images.numpy()))
            _on_each(blind, _keep, sent, self._cache)


def is_checked(node_id: str) -> bool:
    """Return, in a worker, whether its driver found that the node can run trials."""
    return bool(internal_kv._internal_kv_exists(_key(node_id), namespace=_CHECKED))


def _key(node_id: str) -> str:
    return f"{ray.get_runtime_context().get_job_id()} {node_id}"  # a job of Ray's is a driver


@contextmanager
def prepared_nodes(
    folder: UPath, data: Data, cache: Path, note: Callable[[str], None], *, is_kept: bool
) -> Iterator[Nodes]:
    """Check every node before the first trial, and give it the data.

    Args:
        folder: Of the search.
        data: As the driver sees them.
        cache: Folder of decoded images and of features, on every node.
        note: Called with lines for a person.
        is_kept: False: at the end every other node deletes its `cache`.

    Raises:
        ClusterError: A node cannot run trials of this search.
    """
    nodes = Nodes(folder, data, cache, note)
    nodes.start()
    try:
        yield nodes
    finally:
        nodes.forget(data=not is_kept)


def check_packages(others: list[dict[str, Any]], timeout_s: float | None = None) -> None:
    """Check that nodes have this package, file for file, and what it imports.

    Raises:
        ClusterError: A node does not.
    """
    if not others:
        return
    installed = _installed()
    here = installed()
    found = _on_each(others, ray.remote(num_cpus=0)(installed), timeout_s=timeout_s)
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


def check_storage(folder: UPath, others: list[dict[str, Any]]) -> None:
    """Check that nodes see the same `folder`, by a file written here and read there.

    Raises:
        ClusterError: A node does not.
    """
    if not others:
        return
    folder = folder.absolute()  # a worker's working directory is another
    word = uuid.uuid4().hex
    probe = folder / f".probe_{word}"
    probe.write_text(word)
    try:
        found = _on_each(others, _read, str(probe), timeout_s=ANSWER_LIMIT_S)
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


def other_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, less this one, as Ray describes them."""
    return _others(_alive())


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _others(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    here = ray.get_runtime_context().get_node_id()
    return [node for node in nodes if node["NodeID"] != here]


def _on_each(
    nodes: list[dict[str, Any]], task: Any, *arguments: Any, timeout_s: float | None = None
) -> list[Any]:
    """Return what `task` returns on every node, where they run at the same time.

    Raises:
        NodesGoneError: Some went away.
        ClusterError: One does not answer in time, or cannot do it.
    """
    where = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    running = [task.options(scheduling_strategy=each).remote(*arguments) for each in where]
    try:
        results: list[Any] = ray.get(running, timeout=timeout_s)
    except RayError as error:
        if gone := [node for node in nodes if is_node_gone(None, node["NodeID"])]:
            raise NodesGoneError(gone) from error
        asked = ", ".join(node["NodeManagerAddress"] for node in nodes)
        if isinstance(error, GetTimeoutError):
            reason = f"not all answered within {timeout_s:g} s: see what they are busy with"
        elif not isinstance(error, RayTaskError):  # a process died there
            reason = reason_of(error)
        elif isinstance(error.cause, UserError | OSError):
            reason = reason_of(error.cause)
        else:
            raise
        raise ClusterError(f"{asked}: {reason}") from error
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
def _keep(sent: tuple[Data, Any], cache: Path) -> None:
    store_data(*sent, cache)


@ray.remote(num_cpus=0)
def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@ray.remote(num_cpus=0)
def _read(file: str) -> str | None:
    path = UPath(file)
    return path.read_text() if path.exists() else None
