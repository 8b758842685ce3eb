"""Every node of a cluster: checked before the first trial, and given the data."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from upath import UPath

from search.cluster.settings import ClusterError
from trainable.data.dataset import Data, find_data, load_data
from trainable.errors import DataError

import ray  # isort: skip  (after search.cluster.settings, which sets what it reads)
from ray.exceptions import GetTimeoutError  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip


@contextmanager
def prepared_nodes(
    folder: UPath, data: Data, cache: Path, note: Callable[[str], None], *, is_kept: bool
) -> Iterator[Any]:
    """Check every node before the first trial, and give it the data; yield as `ship_data` returns.

    Args:
        folder: Of the search.
        data: As the driver sees them.
        cache: Folder of decoded images and of features, on every node.
        note: Called with lines for a person.
        is_kept: False: at the end every other node deletes its `cache`.

    Raises:
        ClusterError: A node cannot run trials of this search.
    """
    check_packages()
    check_storage(folder)
    shipped = ship_data(data, cache, note)
    try:
        yield shipped
    finally:
        if not is_kept:
            _on_each(_other_nodes(), _remove, cache)


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
