"""A search whose files are in an object store and whose study is in PostgreSQL.

Both are real servers on loopback, started and stopped here: moto speaks S3, PostgreSQL is Debian's.
"""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from upath import UPath

from results.history import trials_frame
from results.record import EXPERIMENT
from search.internals import engine_of
from search.space.space import load_space
from search.study.lock import only_driver
from search.study.storage import StudyError, create_study, open_study
from search.study.study import Study
from tests.commands import Command, Done, run
from tests.faults.chaos import SPACE
from tests.made_searches import record
from tests.search import test_resume
from trainable.epoch import Epoch

pytestmark = pytest.mark.slow
START_LIMIT_S = 240
PASSWORD = "S3/CR:T@#?&"
"""Of the database: nothing may show or keep it."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def s3_environment() -> Iterator[dict[str, str]]:
    """Start an S3 server with a bucket; give the environment that reaches it."""
    pytest.importorskip("s3fs")
    port = _free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_port(port, server)
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        make = "import boto3; boto3.client('s3').create_bucket(Bucket='searches')"
        subprocess.run([sys.executable, "-c", make], env=os.environ | environment, check=True)
        yield environment
    finally:
        server.terminate()
        server.wait(START_LIMIT_S)


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """Start a PostgreSQL server of our own; give the URL of an empty database, with a password."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    port = _free_port()
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    control = [*as_user, str(binaries[-1] / "pg_ctl"), "-D", str(folder / "data")]
    try:
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        init = f"-A scram-sha-256 -U search --pwfile {folder / 'password'}"
        subprocess.run([*control, "initdb", "-o", init], check=True, capture_output=True)
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        log = str(folder / "log")
        subprocess.run([*control, "-w", "-l", log, "-o", options, "start"], check=True)
        yield f"postgresql://search:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


AFTERWARDS = """
import os, sys
from results.predict import main as predict
from results.report.__main__ import main as report
from search.refit import main as refit

storage, number, images, out, password = sys.argv[1:]
of_it = ["--name", "remote", "--storage", storage]
model = ["--model", f"{storage}/remote/trials/{number}"]
assert report(of_it) == 2
os.environ["PGPASSWORD"] = password
sys.exit(report(of_it) or refit(of_it) or predict([*model, "--images", images, "--out", out]))
"""


def test_a_search_on_s3_and_postgresql_survives_a_kill_and_gives_predictions(
    s3_environment: dict[str, str],
    postgres_url: str,
    data: Path,
    tiny_cache: Path,
    tmp_path: Path,
) -> None:
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    where = ["--storage", "s3://searches/runs", "--name", "remote"]
    how = ["--json", "--concurrency", "2"]
    first = [
        "-m", "search.run", *where, *how, "--space", str(space), "--trials", "4",
        "--study", postgres_url, "--data", str(data), "--cache", str(tiny_cache),
        "--novel", str(data / "novel_images"),
    ]  # fmt: skip

    import s3fs

    store = s3fs.S3FileSystem(
        key=s3_environment["AWS_ACCESS_KEY_ID"], secret=s3_environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=s3_environment["AWS_ENDPOINT_URL"], use_listings_cache=False,
    )  # fmt: skip
    said: list[Done] = []

    def listing() -> str:
        return str(store.find("searches"))

    driver = Command(tmp_path, *first, within=os.environ | s3_environment)
    try:
        driver.wait_for(lambda: "checkpoint_00001" in listing())
        driver.process.kill()
        said.append(driver.ended())
    finally:
        driver.clean_up()
    resume = ["-m", "search.run", *where, *how, "--resume", "--study", postgres_url]
    said.append(resumed := run(tmp_path, *resume, **s3_environment))
    assert resumed.code == 0, resumed
    summary = json.loads(resumed.last_line)
    assert sum(summary["trials"].values()) == 4
    assert "RUNNING" not in summary["trials"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    runs = client.search_runs([experiment.experiment_id])
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert sorted(each.data.tags.get("trial", "") for each in runs) == ["", *"0123"]
    names = listing()
    for name in ("search.json", "space.py", "trials.csv"):
        assert f"searches/runs/remote/{name}" in names
    assert ".tune" not in names, "Tune's scratch was left behind"
    assert "checkpoint_" not in names, "finished trials keep no checkpoints"
    best = summary["best_trial"]["number"]
    asked = [where[1], f"{best:05d}", str(data), str(tmp_path / "out.csv"), PASSWORD]
    said.append(done := run(tmp_path, "-c", AFTERWARDS, *asked, **s3_environment))
    assert done.code == 0, done
    (refused,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert refused.endswith("Passwords are not stored: pass --study URL with it or set PGPASSWORD")
    assert "searches/runs/remote/report/tradeoff.png" in listing()
    store.get("searches", str(tmp_path / "s3"), recursive=True)
    (tmp_path / "said.txt").write_text("".join(each.out + each.err for each in said))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"search.json", "mlflow.db", "said.txt"} <= {path.name for path in files}
    for secret in (PASSWORD.encode(), postgres_url.partition("@")[0].encode()):
        assert [path for path, content in files.items() if secret in content] == []
    predicted = (tmp_path / "out.csv").read_text().splitlines()
    assert len(predicted) - 1 == len(list((data / "test_images").iterdir()))


def cut_connections(url: str) -> None:
    """End every other connection to the database, as a firewall or a restart does."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
        )


@pytest.mark.parametrize("moment", ["between calls", "at every commit"])
def test_a_search_whose_connections_are_cut_loses_and_doubles_nothing(
    postgres_url: str, tmp_path: Path, moment: str
) -> None:
    file = tmp_path / "asked.py"
    file.write_text(
        "NUM_TRIALS = 6\nEPOCHS = 1\nBASELINES = [{'lr': 0.5}]\n"
        "def space(trial):\n    return {'lr': trial.suggest_float('lr', 0.1, 1.0)}\n"
    )
    searches = []
    for is_cut in (False, True):
        name = f"{moment} {is_cut}"
        optuna_study = create_study(postgres_url, name, ("score",))
        engine = engine_of(optuna_study)
        assert engine is not None
        number_of_commits = itertools.count()

        def cut(_connection: object, counted: Iterator[int] = number_of_commits) -> None:
            if next(counted) % 2 == 0:  # the next try shall succeed
                cut_connections(postgres_url)

        if is_cut and moment == "at every commit":
            sa.event.listen(engine, "commit", cut)
        with only_driver(UPath("memory://search"), optuna_study) as check:
            study = Study(optuna_study, load_space(UPath(file)), seed=0, observers=[], check=check)
            told = Epoch(number=1, metrics={"score": 0.5})
            while (trial := study.next()) is not None:
                for act, content in (
                    (study.start, {"host": "node", "device": "cpu"}),
                    (study.report, {"epoch": told}),
                    (study.finish, {"best": told}),
                ):
                    if is_cut and moment == "between calls":
                        cut_connections(postgres_url)
                    act(trial.number, **content)
                if is_cut and moment == "between calls":
                    cut_connections(postgres_url)
        left = open_study(postgres_url, name).get_trials()
        searches.append([(t.number, t.state.name, t.values, t.params, t.user_attrs) for t in left])
    assert searches[0] == searches[1]
    assert [state for _, state, *_ in searches[0]] == ["COMPLETE"] * 6


def test_a_search_is_read_though_the_first_connection_is_cut(
    postgres_url: str, tmp_path: Path
) -> None:
    create_study(postgres_url, "read", ("score",)).ask()
    asked = record(study=postgres_url, study_name="read")
    readers: list[Callable[[], Sized]] = [
        lambda: trials_frame(UPath(tmp_path), asked),
        lambda: open_study(postgres_url, "read").trials,
    ]
    for read in readers:
        number_of_connections = itertools.count()

        def cut(*_: object, counted: Iterator[int] = number_of_connections) -> None:
            if next(counted) == 0:
                cut_connections(postgres_url)

        sa.event.listen(sa.pool.Pool, "connect", cut)
        try:
            assert len(read()) == 1
        finally:
            sa.event.remove(sa.pool.Pool, "connect", cut)
        assert next(number_of_connections) > 1


@pytest.mark.parametrize("is_left", [False, True])
def test_of_drivers_that_start_at_once_one_gets_the_search_in_postgresql(
    postgres_url: str, is_left: bool
) -> None:
    with contextlib.suppress(StudyError):
        create_study(postgres_url, "s", ("score",))
    study = open_study(postgres_url, "s")
    if is_left:
        test_resume.leave_lease(study, pid=2**22 + 1)
    test_resume.race(postgres_url)
