"""An MLflow that cannot be used says why in its own words, and what to do about that."""

import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from results.mlflow_store import TrackingError, connect, experiment_id, runs_page
from tests.commands import ROOT, Command


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, make_mlflow: Callable[[Path], Path]) -> Path:
    """An MLflow database with a deleted experiment."""
    folder = make_mlflow(tmp_path_factory.mktemp("store")).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts artifacts beside its database
        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        client.delete_experiment(client.create_experiment("gone"))
    return folder / "mlflow.db"


def refusal(uri: str) -> str:
    """Return the one line that says why the store cannot be used."""
    with pytest.raises(TrackingError) as raised:
        connect(uri)
    message = str(raised.value)
    assert message.startswith(f"MLflow at {uri.replace('PLUGH', '***')}: ")
    assert "\n" not in message
    return message


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_port_that_does_not_answer_is_known_before_mlflow_has_tried_seven_times(
    scheme: str,
) -> None:
    start_s = time.monotonic()
    message = refusal(f"{scheme}://me:PLUGH@127.0.0.1:{free_port()}")
    assert time.monotonic() - start_s < 100  # its seven tries take four minutes
    assert "refused" in message
    assert message.endswith("So start the server, or pass another --tracking-uri")


def test_old_file_store_is_refused_with_the_remedy_that_mlflow_names(tmp_path: Path) -> None:
    (tmp_path / "mlruns/0").mkdir(parents=True)
    message = refusal(f"file://{tmp_path / 'mlruns'}")
    assert "`mlflow migrate-filestore`" in message
    assert "MLFLOW_ALLOW_FILE_STORE=true" in message  # what MLflow says last
    assert "start the server" not in message


def test_old_schema_is_refused_with_the_command_that_upgrades_it(
    database: Path, tmp_path: Path
) -> None:
    shutil.copy(database, tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("update alembic_version set version_num = 'cbc13b556ace'")
    message = refusal(f"sqlite:///{tmp_path / 'old.db'}")
    assert f"'mlflow db upgrade sqlite:///{tmp_path / 'old.db'}'" in message
    assert "start the server" not in message


def test_file_that_is_no_database_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("a text, and not a short one" * 100)
    message = refusal(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "file is not a database. So mend that" in message


def test_unknown_scheme_is_refused(tmp_path: Path) -> None:
    assert "unsupported URI 'nosuch://me:***@host'" in refusal("nosuch://me:PLUGH@host")


def test_store_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"/deep/mlflow\.db: there is no such file"):
        connect(f"sqlite:///{tmp_path / 'deep/mlflow.db'}", is_read=True)
    assert [*tmp_path.iterdir()] == []


def test_deleted_experiment_is_refused_with_the_command_that_restores_it(database: Path) -> None:
    client = connect(f"sqlite:///{database}")
    expected = (
        r"the experiment 'gone' is deleted\. Restore it by mlflow experiments restore "
        r"--experiment-id 1, or pass another --experiment$"
    )
    for number in (None, "1"):
        with pytest.raises(TrackingError, match=expected):
            experiment_id(client, "gone", number)


def test_experiment_is_found_by_name_or_number(database: Path) -> None:
    client = connect(f"sqlite:///{database}")
    number = experiment_id(client, "mine", None)
    assert experiment_id(client, "mine", None) == number
    assert experiment_id(client, "not looked at", number) == number
    kind = "mlflow.experimentKind"
    assert client.get_experiment(number).tags[kind] == "custom_model_development"
    for tags, expected in (({}, "custom_model_development"), ({kind: "finetuning"}, "finetuning")):
        made = client.create_experiment(f"made by hand {tags}", tags=tags)
        assert experiment_id(client, "", made) == made
        assert client.get_experiment(made).tags[kind] == expected
    with pytest.raises(MlflowException, match="999"):
        experiment_id(client, "mine", "999")


def test_page_of_a_search_is_at_its_server_or_at_that_of_mlflow_ui() -> None:
    path = "/#/experiments/7/runs?searchFilter=tags.search_id%20%3D%20%27abc%27"
    assert runs_page("http://me:PLUGH@host:5000/", "7", "abc") == f"http://host:5000{path}"
    assert runs_page("sqlite:///mlflow.db", "7", "abc") == f"http://127.0.0.1:5000{path}"


@pytest.mark.slow
def test_commands_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    code = (
        "from results.mlflow_store import connect; print('ready', flush=True); input(); "
        f"connect('sqlite:///{tmp_path / 'mlflow.db'}')"
    )
    with Command(ROOT, "-c", code) as one, Command(ROOT, "-c", code) as other:
        one.wait_for(lambda: one.done().out)
        other.wait_for(lambda: other.done().out)
        for each in (one, other):
            each.tell("")
        ended = one.ended(), other.ended()
    assert [each.code for each in ended] == [0, 0], ended
