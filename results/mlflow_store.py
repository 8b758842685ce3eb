"""The MLflow that a command asks: named with its own reason where it cannot be used."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

# An unreachable server is known within seconds, not after MLflow's default of four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Of each run that ends a server would be asked once more, for two lines on standard output.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from upath import UPath

from results.record import absolute_url
from trainable.errors import UserError, reason_of
from trainable.urls import public

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: without it MLflow's pages begin with an empty one, for traces of agents."""
_NOTE = {"mlflow.note.content": "Searches of noveltune, each with its trials below it."}
_DATABASES = ("postgresql", "mysql", "mssql")


class TrackingError(UserError):
    """An MLflow that cannot be used."""


def default_uri() -> str:
    """Return what MLFLOW_TRACKING_URI says, or MLflow's own choice in this folder."""
    return absolute_url(mlflow.get_tracking_uri())


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what stores and drivers raise into one line.

    Raises:
        TrackingError: With the reason that they gave, and what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # stores and drivers raise types of their own
        is_silent = _is_silence(error) and not uri.startswith("sqlite")
        what = "start the server" if is_silent else "mend that"
        reason = reason_of(error).replace("<database_uri>", public(uri)).rstrip(".")
        raise TrackingError(
            f"MLflow at {uri}: {reason}. So {what}, or pass another --tracking-uri"
        ) from error


def _is_silence(error: BaseException | None) -> bool:
    """Whether nobody answered, behind whatever wraps that."""
    silent = (requests.ConnectionError, requests.Timeout, sqlalchemy.exc.OperationalError)
    while error is not None and not isinstance(error, silent):
        error = error.__cause__ or error.__context__
    return error is not None


def connect(uri: str, *, is_read: bool = False) -> MlflowClient:
    """Return a client of the store at `uri`, which answers.

    Args:
        uri: Of a server or a database.
        is_read: Make no database where there is none.

    Raises:
        TrackingError: It does not answer, or answers that it cannot be used.
    """
    scheme, _, path = uri.partition(":///")
    if is_read and scheme == "sqlite" and not Path(path).is_file():
        raise TrackingError(f"MLflow at {uri}: there is no such file. Pass another --tracking-uri")
    with explained(uri), _alone(scheme, path):
        if scheme.partition("+")[0].partition(":")[0] in _DATABASES:
            # MLflow would try for two minutes, with ten warnings.
            sqlalchemy.create_engine(uri).connect().close()
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone(scheme: str, path: str) -> Iterator[None]:
    """Keep other commands from making MLflow's tables in the same folder at the same time.

    Two that do so get in each other's way: "duplicate column name".
    """
    with ExitStack() as holding:
        if scheme == "sqlite":
            with suppress(OSError):  # no such folder yet, or a file system without locks
                folder = os.open(Path(path).parent, os.O_RDONLY)
                holding.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def experiment_id(client: MlflowClient, name: str, number: str | None) -> str:
    """Return the id of an experiment that runs can be logged to; create one by name if need be.

    Args:
        client: Of the store.
        name: Used unless there is a number.
        number: MLflow's id of it.

    Raises:
        TrackingError: It is deleted.
        MlflowException: There is none of that number, or none can be created.
    """
    found: Experiment | None
    if number is not None:
        found = client.get_experiment(number)
    else:
        try:
            return str(client.create_experiment(name, tags=_KIND | _NOTE))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow at {client.tracking_uri}: the experiment {found.name!r} is deleted. Restore "
            f"it by mlflow experiments restore --experiment-id {found.experiment_id}, or pass "
            "another --experiment"
        )
    for key, value in _KIND.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def runs_page(uri: str, experiment_id: str, search_id: str) -> str:
    """Return where a browser shows the runs of a search: at its server, or at that of `mlflow ui`.

    Args:
        uri: Of the store.
        experiment_id: MLflow's number.
        search_id: The runs' tag.
    """
    server = public(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    query = quote(f"tags.search_id = '{search_id}'")
    return f"{server}/#/experiments/{experiment_id}/runs?searchFilter={query}"


@contextmanager
def local_copies(files: Sequence[UPath]) -> Iterator[list[Path]]:
    """Give paths that MLflow can upload: the files, or copies of those in an object store."""
    with tempfile.TemporaryDirectory() as scratch:
        copies = []
        for file in files:
            if isinstance(file, Path):
                copies.append(Path(file))
            else:
                copies.append(Path(scratch) / file.name)
                copies[-1].write_bytes(file.read_bytes())
        yield copies
