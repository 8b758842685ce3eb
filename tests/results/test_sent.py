"""The page of a report is where MLflow shows its search: sent once, and what has changed since."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from upath import UPath

from results.mlflow_store import experiment_id
from results.record import EXPERIMENT, SearchRecord
from results.report.sent import FOLDER, send
from tests.made_searches import Search
from tests.search.test_tracking import Server


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.slow)])
def uri(
    request: pytest.FixtureRequest, tmp_path: Path, make_mlflow: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:  # fmt: skip
    """A database that MLflow keeps beside its artifacts, and a real server of it."""
    make_mlflow(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # a busy machine is no outage
    if request.param == "file":
        yield f"sqlite:///{tmp_path / 'mlflow.db'}"
        return
    server = Server(tmp_path)
    try:
        server.start()
        yield server.uri
    finally:
        server.stop()


@pytest.fixture
def record(uri: str, tmp_path: Path) -> SearchRecord:
    return replace(Search(tmp_path / "runs").record, tracking_uri=uri)


def parent_of(record: SearchRecord) -> str:
    """Make the run of a search, as its tracker does; return its id."""
    client = MlflowClient(record.tracking_uri)
    number = experiment_id(client, record.experiment, None)
    run = client.create_run(number, tags={"search_id": record.id, "level": "parent"})
    return str(run.info.run_id)


def page(folder: Path, **contents: str) -> list[UPath]:
    """Write the files of a page; `confusion_png="x"` is confusion.png."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_text(content)
    return [UPath(folder / name.replace("_", ".")) for name in contents]


def shown(record: SearchRecord, run_id: str, folder: Path) -> dict[str, str]:
    """Return the files that MLflow has of the page, and what is in them."""
    client = MlflowClient(record.tracking_uri)
    names = [each.path for each in client.list_artifacts(run_id, FOLDER)]
    folder.mkdir(exist_ok=True)
    return {
        name: Path(client.download_artifacts(run_id, name, str(folder))).read_text()
        for name in names
    }


def test_page_is_sent_once_to_the_search_s_run_and_anew_where_it_changed(
    record: SearchRecord, tmp_path: Path
) -> None:
    html = 'first<div class="files">roc: <a href="roc.csv">CSV</a> </div>'
    files = page(tmp_path / "page", index_html=html, roc_png="1", seeds_png="1", roc_csv="x")
    assert send(record, files).endswith(
        "shows no run of this search, so the page is in its folder alone"
    )
    client = MlflowClient(record.tracking_uri)
    assert client.get_experiment_by_name(EXPERIMENT) is None, "to ask makes nothing"
    run_id = parent_of(record)
    assert "has the page, too, as report/index.html of the search's run" in send(record, files)
    first = {"report/index.html": "first", "report/roc.png": "1", "report/seeds.png": "1"}
    assert shown(record, run_id, tmp_path / "got") == first
    assert files[0].read_text() == html, "the folder's own page keeps its links"

    root = tmp_path / "artifacts" if record.tracking_uri.startswith("http") else tmp_path / "mlruns"
    stored = {file.name: file.stat().st_mtime_ns for file in root.rglob("report/*")}
    assert len(stored) == 3
    assert "has this page already" in send(record, files)
    files = page(tmp_path / "page", index_html="second", roc_png="1")
    assert "has the page, too" in send(record, files)
    second = {"report/index.html": "second", "report/roc.png": "1"}
    assert shown(record, run_id, tmp_path / "again") == second
    (roc,) = root.rglob("report/roc.png")
    assert roc.stat().st_mtime_ns == stored["roc.png"], "it was sent again"
    client.delete_run(run_id)
    assert "shows no run of this search" in send(record, files), "what is deleted stays so"


@pytest.mark.parametrize("away", ["sqlite:///{}/none.db", "http://127.0.0.1:9"])
def test_mlflow_that_is_away_costs_a_line(away: str, tmp_path: Path) -> None:
    record = replace(Search(tmp_path / "runs").record, tracking_uri=away.format(tmp_path))
    line = send(record, page(tmp_path / "page", index_html="first"))
    assert line.startswith(f"the page is in its folder alone: MLflow at {record.tracking_uri}: ")
    assert "\n" not in line
    assert not (tmp_path / "none.db").exists()


def test_artifacts_that_cannot_be_stored_cost_a_line(
    make_mlflow: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_mlflow(tmp_path)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    record = replace(Search(tmp_path / "runs").record, tracking_uri=uri)
    parent_of(record)
    (tmp_path / "mlruns").write_text("no folder")
    line = send(record, page(tmp_path / "page", index_html="first"))
    assert line.startswith("the page is in its folder alone: ")
    assert "\n" not in line
