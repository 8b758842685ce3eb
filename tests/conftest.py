"""What tests of several packages share.

What takes long to import is imported where it is used: xdist's first process reads this file
before it starts the others, and runs no test.
"""

import atexit
import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.nodeid import coerce_node_id
from hypothesis import settings

gc.disable()
"""Until all is collected: imports make a million objects that stay, and each search among them
takes half a second."""

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are too small to share out, and one thread gives the same bits everywhere."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _head_version_once() -> Iterator[None]:
    """Optuna reads its ten migrations whenever it opens a database, to know the newest of them."""
    from optuna.storages._rdb.storage import _VersionManager

    find, found = _VersionManager.get_head_version, list[str]()

    def find_once(manager: _VersionManager) -> str:
        if not found:
            found.append(find(manager))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "get_head_version", find_once)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set on the disk, with its pool of borrowed images in `novel_images`."""
    from tests.made_data import drawn

    return drawn(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def make_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that puts an empty MLflow database into a folder.

    It is copied: MLflow takes seconds to make one, by all the steps of its own history.
    """
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow-empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts artifacts beside its database
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    def make(target: Path) -> Path:
        return Path(shutil.copy(folder / "mlflow.db", target))

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests that share what takes long in one process, where they run in several.

    That is for `--dist loadgroup`: a fixture of a module is then made once. xdist 3.8 writes the
    group into an attribute that pytest 9.2 does not read any more, and so groups nothing.
    """
    is_grouped = config.getoption("loadgroup", default=False)  # in xdist's processes
    for item in items:
        fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - private
        if any(each[-1].scope == "module" for each in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
        if is_grouped and (group := item.get_closest_marker("xdist_group")):
            item._id = coerce_node_id(f"{item.nodeid}@{group.args[0]}")


def pytest_collection_finish() -> None:
    """Search for garbage again, but not among what was imported."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # else some libraries find what they leak, and say so
