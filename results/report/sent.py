"""The page where MLflow shows its search: sent once, and what of it has changed since."""

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from upath import UPath

from results.mlflow_store import connect, explained
from results.record import SearchRecord
from results.report.links import without_links
from trainable.errors import UserError
from trainable.urls import public

FOLDER = "report"
"""Of the run's artifacts."""
SENT = "report_files"
"""Tag of the run: the digest of each file that is there."""
_KINDS = (".html", ".png")
"""That MLflow shows: the page, which holds its pictures, and these for slides."""


def send(record: SearchRecord, files: Sequence[UPath]) -> str:
    """Bring the search's run to these files of its page; return a line that says what came of it.

    Args:
        record: Of the search.
        files: The page's, see `write_page`. Of them are sent those that MLflow shows.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    where = f"MLflow at {public(record.tracking_uri)}"
    try:
        client = connect(record.tracking_uri, is_read=True)
        with explained(record.tracking_uri):
            run = _run_of(client, record)
            if run is None:
                return f"{where} shows no run of this search, so the page is in its folder alone"
            shown = [file for file in files if file.suffix in _KINDS]
            num_sent = _send_changed(client, run, shown)
    except UserError as error:
        return f"the page is in its folder alone: {error}"
    if not num_sent:
        return f"{where} has this page already, as {FOLDER}/{files[0].name} of the search's run"
    return f"{where} has the page, too, as {FOLDER}/{files[0].name} of the search's run"


def _as_sent(file: UPath) -> bytes:
    """Return a file as MLflow gets it: it shows a page alone, so that links would lead nowhere."""
    content = file.read_bytes()
    return without_links(content.decode()).encode() if file.suffix == ".html" else content


def _run_of(client: MlflowClient, record: SearchRecord) -> Run | None:
    """Return the run of the whole search, if there is one; none is made."""
    if record.experiment_id is not None:
        number = record.experiment_id
    elif (experiment := client.get_experiment_by_name(record.experiment)) is not None:
        number = experiment.experiment_id
    else:
        return None
    query = f"tags.search_id = '{record.id}' and tags.level = 'parent'"
    runs: list[Run] = client.search_runs([number], query, max_results=1)
    return runs[0] if runs else None


def _send_changed(client: MlflowClient, run: Run, files: Sequence[UPath]) -> int:
    """Send what is not there as it is, delete what is no more part of it; return how many."""
    run_id = run.info.run_id
    before: dict[str, str] = json.loads(run.data.tags.get(SENT, "{}"))
    now = {file.name: hashlib.sha256(_as_sent(file)).hexdigest()[:16] for file in files}
    if now == before:
        return 0
    changed = [file for file in files if now[file.name] != before.get(file.name)]
    stays = {name: digest for name, digest in now.items() if before.get(name) == digest}
    if stays != before:
        client.set_tag(run_id, SENT, json.dumps(stays))  # of the others nobody knows from here on
    with TemporaryDirectory() as folder:
        for file in changed:
            copy = Path(folder, file.name)
            copy.write_bytes(_as_sent(file))
            client.log_artifact(run_id, str(copy), FOLDER)
    stored = get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)
    for gone in before.keys() - now.keys():
        with suppress(NotImplementedError, MlflowException, OSError):  # some stores never delete
            stored.delete_artifacts(str(PurePath(FOLDER, gone)))  # type: ignore[no-untyped-call]
    client.set_tag(run_id, SENT, json.dumps(now))
    return len(changed)
