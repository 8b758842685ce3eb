"""A mistake in what was asked is one line on standard error, exit code 2, and nothing is left."""

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from upath import UPath

from results.mlflow_store import default_uri
from results.record import SearchRecord, load_record
from search.cluster.messages import Job
from search.outcome import resume_command, summary
from search.plan import Options, plan
from search.run import _parser, main
from search.space.space import Space
from search.start import New
from search.study.storage import create_study
from search.tracking import search_info
from tests.commands import ROOT, run
from tests.disks import small_file_system
from tests.made_data import make_data
from trainable.config import TrialConfig
from trainable.data.dataset import load_data
from trainable.data.splits import PROTOCOL
from trainable.errors import UserError
from trainable.novelty.metrics import METRICS

SPACE = '''"""Is it a plan?"""
NUM_TRIALS = 3
EPOCHS = 2
BASELINES = [{"fine_tune": "frozen", "image_size": 32, "lr": 1e-2}]

def space(trial):
    return {"fine_tune": "frozen", "image_size": 32,
            "lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True)}
'''


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of the command: afterwards the space file is still all it holds."""
    (tmp_path / "asked.py").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.study.storage.OPEN_RETRY_S", (0.0,))  # no server comes up meanwhile
    yield tmp_path
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "mlruns").exists()


@pytest.fixture
def sources(data: Path, cache: Path) -> list[str]:
    """Options that name the small data set, its pool and a cache."""
    return ["--data", str(data), "--novel", str(data / "novel_images"), "--cache", str(cache)]


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command, which must refuse; return its one line without `error: `."""
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    waits = re.compile(r".*: loading what a search needs|reading the images|building each .*")
    assert [line for line in captured.out.splitlines() if not waits.fullmatch(line)] == []
    assert "PLUGH" not in captured.out, "a password"
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def asked_of(options: Options) -> tuple[SearchRecord, Space, UPath]:
    """Return the plan that a session makes of a command line."""
    return plan(options, default_uri())


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- Arguments alone -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--space FILE is needed (or --resume --name NAME to go on with a search)"),
        (["--resume"], "--resume needs --name NAME"),
        (
            ["--space", "asked.py", "--retry-failed"],
            "--retry-failed needs a search: add --resume --name NAME",
        ),
        (
            ["--space", "asked.py", "--max-reruns", "-1"],
            "--max-reruns must be 0 or more, but got -1",
        ),
        (["--space", "asked.py", "--trials", "0"], "--trials must be 1 or more, but got 0"),
        (["--space", "asked.py", "--trials", "-3"], "--trials must be 1 or more, but got -3"),
        (
            ["--space", "asked.py", "--concurrency", "0"],
            "--concurrency must be 1 or more, but got 0",
        ),
        (["--space", "asked.py", "--epochs", "-1"], "--epochs must be 0 or more, but got -1"),
        (["--space", "asked.py", "--seed", "-1"], "--seed must be 0 or more, but got -1"),
        (
            ["--space", "asked.py", "--set", "alhpa=1"],
            "--set alhpa=1: unknown key 'alhpa' (did you mean 'alpha'?)",
        ),
        (
            ["--space", "asked.py", "--repeat", "3"],
            "--repeat needs a finished search: add --resume --name NAME",
        ),
        (
            ["--resume", "--name", "a", "--repeat", "1"],
            "--repeat must be 2 or more, but got 1",
        ),
        (["--resume", "--name", "a", "--top", "2"], "--top needs --repeat N"),
        *[
            (
                ["--space", "asked.py", "--keep-models", keep],
                f"--keep-models must be all, none, or best_K like best_3, but got {keep!r}",
            )
            for keep in ("best", "best_0", "3", "ALL")
        ],
        *[
            (
                ["--resume", "--name", "a", "--repeat", "3", "--top", top],
                f"--top must be all, or 1 or more, but got {top!r}",
            )
            for top in ("0", "-1", "1.5", "ALL")
        ],
        *[
            (
                ["--resume", "--name", "a", "--repeat", "3", flag, value],
                f"--repeat runs finished trials as they were: leave out {flag}",
            )
            for flag, value in (
                ("--trials", "9"),
                ("--epochs", "9"),
                ("--epochs", "0"),
                ("--space", "asked.py"),
                ("--set", "lr=0.1"),
            )
        ],
        (["--space", "asked.py", "--set", "alpha"], "--set takes KEY=VALUE, but got 'alpha'"),
        (
            ["--space", "asked.py", "--set", "lr=0.1", "--set", "lr=0.2"],
            "--set lr=0.1 and --set lr=0.2 contradict each other",
        ),
        (
            ["--space", "asked.py", "--epochs", "3", "--set", "epochs=2"],
            "--epochs 3 and --set epochs=2 contradict each other",
        ),
        (
            ["--space", "asked.py", "--seed", "2", "--set", "seed=1"],
            "--seed 2 and --set seed=1 contradict each other",
        ),
        (
            ["--space", "asked.py", "--study", "sqlite//study.db"],
            "--study sqlite//study.db: it is no URL of a database, like sqlite:///study.db or "
            "postgresql://USER@HOST/DATABASE",
        ),
    ],
)
def test_argument_that_cannot_be_meant_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], message: str
) -> None:
    assert mistake(capsys, *arguments) == message
    assert [*files_in(folder)] == ["asked.py"]


@pytest.mark.parametrize("budget", ["90", "1h30m", "-5m", "soon", "m", "5 m", "1e3s", "nans"])
def test_bad_time_budget_is_refused(capsys: pytest.CaptureFixture[str], budget: str) -> None:
    message = mistake(capsys, "--space", "asked.py", f"--time-budget={budget}")
    assert message == f"--time-budget must be like 90m, 2h or 300s, but got {budget!r}"


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "local"])
def test_address_that_is_no_cluster_s_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], folder: Path, address: str
) -> None:
    message = mistake(capsys, "--space", "asked.py", "--address", address)
    assert message.startswith(f"--address {address}: ")
    assert [*files_in(folder)] == ["asked.py"]


@pytest.mark.parametrize("share", ["-1", "many", "nan", "inf", "1/4", "1.5", "2"])
def test_bad_share_of_a_gpu_is_refused(capsys: pytest.CaptureFixture[str], share: str) -> None:
    message = mistake(capsys, "--space", "asked.py", f"--gpus-per-trial={share}")
    assert message == (
        f"--gpus-per-trial must be auto or 0 to 1, as a trial trains on one GPU, but got {share!r}"
    )


@pytest.mark.parametrize("name", ["a/b", "/abs", "../up", ".hidden", "a b", "a\n", "~"])
def test_name_that_is_no_folder_name_is_refused(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    message = mistake(capsys, "--space", "asked.py", "--name", name)
    assert message == f"--name may have letters, digits, '.', '_' and '-', but got {name!r}"


def test_mistakes_in_arguments_do_not_wait_for_ray_and_mlflow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ray", "mlflow", "search.session"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises
    assert "--trials must be 1" in mistake(capsys, "--space", "asked.py", "--trials", "0")


def test_cache_and_no_cache_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--space", "asked.py", "--cache", "cache", "--no-cache"])
    assert raised.value.code == 2
    assert "not allowed with argument --cache" in capsys.readouterr().err


def test_unknown_argument_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--space", "asked.py", "--trails", "3"])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no option --trails (did you mean '--trials'?); ")
    assert said.count("\n") == 1


# --- What the arguments name ---------------------------------------------------------------------


def test_space_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(capsys, "--space", "other.py")
    assert message == (
        "--space other.py: there is no such file, and no shipped space of that name; shipped are "
        "backbones, best_in_ten_minutes, best_on_a_laptop, frozen_heads, full_ablation, "
        "ladder_sub, ladder_super, paper, paper_frozen, smoke, thresholds, two_heads"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("alpha=-1", "--set alpha=-1: `0 <= alpha <= 1000` must hold, but got -1.0"),
        ("alpha=big", "--set alpha=big: `alpha` must be float, but got 'big'"),
        (
            "alpha=big --set lr=-1",
            "--set alpha=big: `alpha` must be float, but got 'big'; "
            "--set lr=-1: `1e-08 <= lr <= 10` must hold, but got -1.0",
        ),
    ],
)
def test_set_to_a_bad_value_is_refused(
    capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert mistake(capsys, "--space", "asked.py", "--set", *setting.split()) == message


@pytest.mark.parametrize(
    "command",
    [
        "search.run --epochs 3 --epochs 2",
        "search.run --data here --dat there",
        "search.refit --name a --name=b",
        "results.predict --model a --model b",
        "trainable.train --metric score --metric seen_sub",
    ],
)
def test_option_with_two_values_is_refused_and_both_are_named(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    module, flag, first, *second = command.replace("=", " ").split()
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(module).main(command.split()[1:])
    expected = f"error: argument {flag}: given twice, {first} and {second[-1]}: drop one\n"
    assert capsys.readouterr().err == expected


def test_unknown_metric_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(capsys, "--space", "asked.py", "--metric", "seen_sub,unseen_sup")
    assert message == "unknown --metric 'unseen_sup' (did you mean 'unseen_super'?)"


def test_data_that_are_missing_are_named_and_nothing_is_left(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, cache: Path
) -> None:
    where = ["--novel", str(data / "novel_images"), "--cache", str(cache)]
    message = mistake(capsys, "--space", "asked.py", "--data", "nowhere", *where)
    assert str(folder / "nowhere") in message
    assert [*files_in(folder)] == ["asked.py"]


def test_novel_pool_that_is_missing_is_named_and_nothing_is_left(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, cache: Path
) -> None:
    where = ["--data", str(data), "--cache", str(cache)]
    message = mistake(capsys, "--space", "asked.py", "--novel", "nowhere.zip", *where)
    assert str(folder / "nowhere.zip") in message
    assert [*files_in(folder)] == ["asked.py"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://127.0.0.1:1/d", "//127.0.0.1:1/d cannot be used: "),
        ("sqlite:///nowhere/study.db", "/nowhere/study.db cannot be used: there is no such folder"),
        ("sqlite://", "sqlite:// is forgotten with this process"),
    ],
)
def test_database_that_cannot_be_used_is_named_before_the_data_are_read(
    capsys: pytest.CaptureFixture[str], folder: Path, url: str, reason: str
) -> None:
    message = mistake(capsys, "--space", "asked.py", "--data", "away", "--study", url)
    assert reason in message
    assert [*files_in(folder)] == ["asked.py"]


# --- MLflow --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "environment", "expected"),
    [
        (None, {}, ("noveltune", None)),
        (None, {"MLFLOW_EXPERIMENT_NAME": "birds"}, ("birds", None)),
        (None, {"MLFLOW_EXPERIMENT_ID": "7"}, ("noveltune", "7")),
        ("typed", {"MLFLOW_EXPERIMENT_NAME": "birds"}, ("typed", None)),
        ("typed", {"MLFLOW_EXPERIMENT_ID": "7"}, ("typed", None)),
    ],
)
def test_experiment_is_as_typed_or_of_the_environment_and_a_resume_keeps_it(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str | None,
    environment: dict[str, str],
    expected: tuple[str, str | None],
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    record, _, kept = asked_of(Options(space=UPath("asked.py"), fixed={}, experiment=typed))
    assert (record.experiment, record.experiment_id) == expected
    kept.mkdir(parents=True)
    (kept / "space.py").write_text(SPACE)
    record.save(kept)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of another day")
    resumed, _, _ = asked_of(Options(name=record.name, resume=True, fixed={}))
    assert (resumed.experiment, resumed.experiment_id) == expected
    resumed, _, _ = asked_of(Options(name=record.name, resume=True, fixed={}, experiment="moved"))
    assert (resumed.experiment, resumed.experiment_id) == ("moved", None)


def test_relative_sqlite_files_are_kept_as_absolute_ones(folder: Path) -> None:
    asked = Options(
        space=UPath("asked.py"), fixed={}, study="sqlite:///study.db", tracking_uri="sqlite:///m.db"
    )
    record, _, _ = asked_of(asked)
    assert record.study == f"sqlite:///{folder / 'study.db'}"
    assert record.tracking_uri == f"sqlite:///{folder / 'm.db'}"


# --- Passwords -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--study", "postgresql://me:PLUGH@127.0.0.1:1/d"),
        ("--study", "nosuch://me:PLUGH@127.0.0.1/d"),
        ("--study", "postgresql://me:PL@UGH@127.0.0.1/d"),
        ("--tracking-uri", "http://me:P/LUGH@127.0.0.1:1"),
        ("--storage", "s3://KEY:PLUGH@bucket/x"),
        ("--storage", "nosuch://KEY:PLUGH@bucket/x"),
        ("--space", "https://me:PLUGH@host/asked.py"),
        ("--data", "https://me:PLUGH@host/x.zip"),
        ("--novel", "https://host/x.zip?token=PLUGH"),
        ("--weights", "s3://KEY:PLUGH@bucket/w"),
    ],
)
def test_mistake_in_a_url_shows_no_password(
    capsys: pytest.CaptureFixture[str], data: Path, cache: Path, flag: str, value: str
) -> None:
    known = {
        "--space": "asked.py", "--data": str(data), "--novel": str(data / "novel_images"),
        "--cache": str(cache), flag: value,
    }  # fmt: skip
    try:
        code = main([argument for pair in known.items() for argument in pair])
    except SystemExit as raised:  # of argparse
        code = int(raised.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert "error: " in captured.err
    assert "UGH" not in captured.out + captured.err


def test_password_is_neither_kept_nor_sent(folder: Path, cache: Path) -> None:
    study, uri = "postgresql://me:PLUGH@host/d", "http://me:PLUGH@host:5000"
    asked = Options(space=UPath("asked.py"), fixed={}, study=study, tracking_uri=uri)
    record, _, _ = asked_of(asked)
    assert (record.study, record.tracking_uri) == (study, uri)
    record.save(UPath(folder))
    assert "PLUGH" not in (folder / "search.json").read_text()
    kept = load_record(UPath(folder))
    assert (kept.study, kept.tracking_uri) == ("postgresql://me@host/d", "http://host:5000")
    data = make_data()
    sent = (search_info(record, UPath(folder), data, ""), summary(record, UPath(folder), None, 0.0),
            Job.of(record, UPath(folder), cache))  # fmt: skip
    assert "PLUGH" not in str(sent)


def test_ray_is_told_no_password_of_the_command_line() -> None:
    code = (
        "import search.cluster.settings, ray._private.utils as u; from ray._private import worker; "
        "print(worker.ray._private.utils.get_entrypoint_name())"
    )
    url = "postgresql://me:PLUGH@host/d"
    done = run(ROOT, "-c", code, "--study", url)
    assert "--study postgresql://me:***@host/d" in done.out, done


def test_resume_with_other_credentials_is_the_same_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {"study": "postgresql://me@host/d", "tracking_uri": "http://host:5000"}
    kept_search(folder, "first", **stores)
    resumed = Options(fixed={}, name="first", resume=True)
    record, _, _ = asked_of(resumed)
    assert (record.study, record.tracking_uri) == (stores["study"], stores["tracking_uri"])
    assert "\n" not in resume_command(resumed, record)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://you:PLUGH@host:5000")
    typed = replace(resumed, study="postgresql://you:PLUGH@host/d")
    record, _, _ = asked_of(typed)
    assert (record.study, record.tracking_uri) == (typed.study, "http://you:PLUGH@host:5000")
    note, command = resume_command(typed, record).splitlines()
    assert note == (
        "passwords are not stored: add --study URL with its password, or PGPASSWORD; "
        "--tracking-uri URI with its password, or MLFLOW_TRACKING_USERNAME and _PASSWORD"
    )
    assert command == "python -m search.run --resume --name first"


@pytest.mark.parametrize("option", ["--data", "--novel"])
def test_an_empty_source_is_a_variable_that_is_not_set_and_no_default(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, option: str
) -> None:
    sources = {"--data": str(data), "--novel": str(data / "novel_images")} | {option: ""}
    where = [word for pair in sources.items() for word in pair]
    message = mistake(capsys, "--space", "asked.py", *where)
    assert message == (
        f"{option}: a folder or a .zip is needed, got an empty text: is a variable not set?"
    )
    kept_search(folder, "first")
    assert mistake(capsys, "--resume", "--name", "first", option, "").startswith(f"{option}: a")


@pytest.mark.parametrize(
    "option",
    [
        "--space",
        "--study",
        "--storage",
        "--tracking-uri",
        "--experiment",
        "--address",
        "--metric",
        "--name",
        "--top",
        "--time-budget",
        "--gpus-per-trial",
    ],
)
@pytest.mark.parametrize("glued", [False, True])
def test_an_empty_value_is_a_variable_that_is_not_set_and_no_default(
    capsys: pytest.CaptureFixture[str], option: str, glued: bool
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--space", "asked.py", *([f"{option}="] if glued else [option, ""])])
    assert raised.value.code == 2
    assert f"{option}: its value is empty: is a variable not set?" in capsys.readouterr().err


@pytest.mark.parametrize("glued", [False, True])
def test_the_home_folder_is_expanded_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glued: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [("--space", "~/a.py"), ("--storage", "~/runs"), ("--cache", "~/c"), ("--set", "a=~/b")]
    typed = ["=".join(pair) for pair in words] if glued else [w for pair in words for w in pair]
    args = _parser().parse_args(typed)
    assert (args.space, args.storage) == (UPath(tmp_path / "a.py"), UPath(tmp_path / "runs"))
    assert (args.cache, args.settings) == (tmp_path / "c", ["a=~/b"])


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("file", "Not a directory"),
        ("file/below/it", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("/proc/runs", "No such file or directory"),  # whoever asks, none can be made there
        ("full/runs", "No space left on device"),
        ("http://127.0.0.1:9/runs", "NotImplementedError"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--resume", "--name", "asked"]])
def test_storage_that_cannot_be_written_is_refused_before_the_data_are_looked_at(
    capsys: pytest.CaptureFixture[str], folder: Path, storage: str, why: str, more: list[str]
) -> None:
    (folder / "file").touch()
    with ExitStack() as disk:
        if storage.startswith("full"):
            full = disk.enter_context(small_file_system(folder / "full", "64k"))
            with contextlib.suppress(OSError):
                (full / "filler").write_bytes(bytes(2**17))
        before = {*folder.rglob("*")}
        line = mistake(
            capsys, "--space", "asked.py", "--data", "nowhere", "--storage", storage, *more
        )
        assert {*folder.rglob("*")} == before
    assert line == (
        f"--storage {storage}: a search cannot be kept there ({why}): pass a folder that can be "
        "written"
    )


def test_an_object_store_without_a_study_is_refused_before_the_data_are_looked_at(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    storage = UPath(f"memory://{folder.name}/runs")
    line = mistake(capsys, "--space", "asked.py", "--data", "nowhere", "--storage", str(storage))
    assert line.startswith(f"--storage {storage} holds files, but SQLite needs a disk: add --study")
    assert not storage.exists()


def test_start_that_fails_leaves_alone_what_others_put_beside_it_meanwhile() -> None:
    searches = UPath(f"memory://{uuid.uuid4().hex}/runs")
    new = New.of(searches / "mine", "")
    for name in ("mine", "theirs"):
        (searches / name).mkdir(parents=True)
        (searches / name / "search.json").write_text("{}")
    new.remove(only_empty=True)
    assert (searches / "mine" / "search.json").exists()
    new.remove()
    assert [file.name for file in searches.iterdir()] == ["theirs"]
    assert (searches / "theirs" / "search.json").exists()


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite:///file:{}?uri=true"])
def test_database_that_a_failed_start_made_is_removed(tmp_path: Path, form: str) -> None:
    made, there = tmp_path / "made.db", tmp_path / "there.db"
    there.touch()
    for file in (made, there):
        new = New.of(UPath(tmp_path), form.format(file))
        file.touch()
        new.remove()
    assert (made.exists(), there.exists()) == (False, True)


def test_the_home_folder_is_expanded_and_both_sources_are_named(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    data: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(data.parent))
    home = f"~/{data.name}"
    where = ["--data", home, f"--novel={home}/novel_images", "--cache", str(cache)]
    assert main(["--space", "asked.py", *where, "--dry-run"]) == 0
    line = f"images from {data.resolve()}; borrowed from {data.resolve()}/novel_images"
    assert line in capsys.readouterr().out.splitlines()


def test_names_of_files_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, cache: Path
) -> None:
    shutil.copytree(data / "novel_images", folder / "pool")
    some_class = next(path for path in (folder / "pool").iterdir() if path.is_dir())
    (some_class / "[bold]:car:[x].txt").write_text("no image")
    where = ["--data", str(data), "--novel", str(folder / "pool"), "--cache", str(cache)]
    assert main(["--space", "asked.py", *where, "--dry-run"]) == 0
    assert "[bold]:car:[x].txt" in capsys.readouterr().out


# --- Searches that are there, or not -------------------------------------------------------------


def kept_search(folder: Path, name: str, **changes: object) -> Path:
    """Write the record of an earlier search, as `search.json` holds it; return its folder."""
    record = {
        "id": "0123", "name": name, "num_trials": 3, "epochs": None, "metrics": ["score"],
        "fixed": {}, "seed": 0, "data": str(folder / "nowhere"), "novel": "synthetic",
        "data_fingerprint": "abc", "weights": None, "cache": str(folder / "cache"), "study": None,
        "study_name": name, "tracking_uri": "sqlite:///mlflow.db", "version": "0.1.0",
        "space_file": "space.py", "protocol": PROTOCOL,
    }  # fmt: skip
    kept = folder / "runs" / name
    kept.mkdir(parents=True)
    (kept / "search.json").write_text(json.dumps(record | changes))
    (kept / "space.py").write_text(SPACE)
    return kept


def test_resume_of_an_unknown_name_names_the_known_ones(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    for name in ("second", "first"):
        kept_search(folder, name)
    message = mistake(capsys, "--resume", "--name", "third")
    assert message == "runs/third: no search of that name; there are: first, second"
    assert not (folder / "runs/third").exists()


def test_resume_where_there_is_no_search_at_all_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    message = mistake(capsys, "--resume", "--name", "third")
    assert message.startswith("runs/third: no search of that name; there is none in runs: ")
    assert not (folder / "runs").exists()


def test_existing_name_without_resume_is_refused_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    kept_search(folder, "first")
    before = files_in(folder)
    message = mistake(capsys, "--space", "asked.py", "--name", "first")
    assert message == (
        "runs/first holds a search already: add --resume to go on with it, or pass another --name"
    )
    assert files_in(folder) == before


@pytest.mark.parametrize("damage", ["", "{", "null", '{"id": "0123"}'])
@pytest.mark.parametrize("is_resume", [True, False])
def test_damaged_record_is_named_and_nothing_is_overwritten(
    capsys: pytest.CaptureFixture[str], folder: Path, damage: str, is_resume: bool
) -> None:
    kept = kept_search(folder, "first")
    (kept / "search.json").write_text(damage)
    before = files_in(folder)
    new = ["--resume"] if is_resume else ["--space", "asked.py"]
    message = mistake(capsys, *new, "--name", "first")
    if is_resume:
        assert message.startswith("runs/first/search.json is damaged (")
        assert message.endswith("nothing was changed. Restore it, or start a new search")
    else:
        assert message.startswith("runs/first holds a search already")
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--metric", "ce_sub"], "--metric was score, now it is ce_sub"),
        (["--seed", "1"], "--seed was 0, now it is 1"),
        (["--set", "val_fraction=0.2"], "--set val_fraction was not set, now it is 0.2"),
        (["--set", "seed=5"], "--set seed was not set, now it is 5"),
    ],
)
def test_resume_with_a_change_that_makes_trials_incomparable_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], start: str
) -> None:
    kept_search(folder, "first")
    before = files_in(folder)
    message = mistake(capsys, "--resume", "--name", "first", *arguments)
    assert message == (
        f"{start}: the finished trials would not be comparable. "
        "Resume without the change, or start a new search"
    )
    assert files_in(folder) == before


@pytest.mark.parametrize("protocol", [None, 1, PROTOCOL + 1])
def test_resume_under_another_protocol_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], folder: Path, protocol: int | None
) -> None:
    """Version 0.1 wrote none: that was the first."""
    kept = kept_search(folder, "first")
    record = json.loads((kept / "search.json").read_text())
    record.pop("protocol")
    if protocol is not None:
        record["protocol"] = protocol
    (kept / "search.json").write_text(json.dumps(record))
    before = files_in(folder)
    message = mistake(capsys, "--resume", "--name", "first")
    assert message.startswith(
        f"first: its trials were judged by validation protocol {protocol or 1}, and this version "
        f"judges by protocol {PROTOCOL}"
    )
    assert message.endswith("to search on, start a new search")
    assert files_in(folder) == before


def test_resume_on_other_data_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, sources: list[str]
) -> None:
    kept_search(folder, "first")
    before = files_in(folder)
    assert main(["--resume", "--name", "first", *sources]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the data's fingerprint was abc, now it is ")
    assert files_in(folder) == before


def search_of_scores(folder: Path, data: Path, cache: Path, scores: list[float]) -> Path:
    """Write a search of three trials of which so many are complete; return its folder."""
    novel = str(data / "novel_images")
    fingerprint = load_data(str(data), novel, cache, note=lambda line: None).fingerprint
    sources = {"data": str(data), "novel": novel, "cache": str(cache)}
    kept = kept_search(folder, "first", data_fingerprint=fingerprint, **sources)
    study = create_study(f"sqlite:///{kept / 'study.db'}", "first", ("score",))
    for number, score in enumerate(scores):
        trial = study.ask()
        config = TrialConfig(lr=0.001 * (number + 1), fine_tune="frozen", image_size=32)
        trial.set_user_attr("config", config.to_dict())
        trial.set_user_attr("baseline", False)
        trial.set_user_attr("metrics", {"score": score})
        study.tell(trial, score)
    return kept


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_repeat_of_an_unfinished_search_is_refused_and_changes_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, cache: Path, more: list[str]
) -> None:
    kept = search_of_scores(folder, data, cache, [0.5, 0.7])
    before = files_in(kept)
    assert main(["--resume", "--name", "first", "--repeat", "3", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: first: 2 of 3 trials are finished, and --repeat ranks all: "
        "first run python -m search.run --resume --name first"
    )
    after = files_in(kept)
    after.pop("driver.lock", None)
    assert after == before


# --- The plan ------------------------------------------------------------------------------------


def test_dry_run_prints_the_plan_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], folder: Path, sources: list[str]
) -> None:
    assert main(["--space", "asked.py", *sources, "--dry-run", "--set", "batch_size=16"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert "asked: Is it a plan?" in lines
    assert "3 trials by score" in lines
    assert any(line.startswith("baseline 0: lr ") for line in lines)
    assert any(
        line.split() == ["lr", "number", "0.001", "to", "0.1,", "log", "scale"] for line in lines
    )
    assert any(line.startswith("two_heads     1          2") for line in lines)
    assert sum(line.startswith("sample: lr ") for line in lines) == 3
    assert any(re.search(r"trials? at a time, each with 1 CPU$", line) for line in lines)
    assert any(
        re.match(r"3 trials: about \d+ (s|min).* in the search's folder", line) for line in lines
    )
    assert "measured on a few images, scaled to all: 1 of 1 kind of trial" in lines
    assert "batch_size: fixed to 16" in lines
    assert any("96 images in 3 superclasses and 24 subclasses; 48 borrowed" in s for s in lines)
    assert [*files_in(folder)] == ["asked.py"]
    assert not (folder / "runs").exists()


def test_dry_run_finds_a_backbone_that_there_is_not(
    capsys: pytest.CaptureFixture[str], folder: Path, sources: list[str]
) -> None:
    assert main(["--space", "asked.py", *sources, "--dry-run", "--set", "backbone=resnet51"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "resnet51" in line


def test_dry_run_finds_more_stages_than_there_are(
    capsys: pytest.CaptureFixture[str], folder: Path, sources: list[str]
) -> None:
    assert main(["--space", "asked.py", *sources, "--dry-run", "--set", "fine_tune=last_99"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "last_99" in line


def test_dry_run_prints_the_repeats_and_plans_none(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, cache: Path
) -> None:
    kept = search_of_scores(folder, data, cache, [0.5, 0.7, 0.6])
    before = files_in(kept)
    arguments = ["--resume", "--name", "first", "--repeat", "2", "--top", "2", "--dry-run"]
    assert main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("repeat")]
    starts = [line.partition("), ")[0] + ")" for line in lines]
    assert starts == [
        "repeat 3: trial 1 with seed 1 (to run)",
        "repeat 4: trial 2 with seed 1 (to run)",
    ]
    assert files_in(kept) == before


# --- What a resume may change --------------------------------------------------------------------


SAID = {"METRIC": ["score"], "NUM_TRIALS": 3, "seed": 0, "val_fraction": 0.1,
        "pseudo_novel_fraction": 0.15, "second_pseudo_novel_fraction": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("METRIC = 'ce_sub'", "other.py: METRIC was score, now it is ce_sub"),
        ("METRIC = 'score', 'ce_sub'", "other.py: METRIC was score, now it is score,ce_sub"),
        ("second_pseudo_novel_fraction=0.2",
         "other.py: second_pseudo_novel_fraction was 0.0, now it is 0.2"),
        ("val_fraction=0.3", "other.py: val_fraction was 0.1, now it is 0.3"),
        ("seed=5", "other.py: seed was 0, now it is 5"),
    ],
)  # fmt: skip
def test_resume_with_a_space_that_judges_otherwise_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, change: str, message: str
) -> None:
    kept_search(folder, "first", said=SAID, protocol=PROTOCOL)
    if change.startswith("METRIC"):
        text = f"NUM_TRIALS = 3\n{change}\ndef space(trial):\n    return {{}}\n"
    else:
        text = f"NUM_TRIALS = 3\ndef space(trial):\n    return dict({change})\n"
    (folder / "other.py").write_text(text)
    before = files_in(folder)
    said = mistake(capsys, "--resume", "--name", "first", "--space", "other.py")
    assert said == (
        f"{message}: the finished trials would not be comparable. "
        "Resume without the change, or start a new search"
    )
    assert files_in(folder) == before


def test_newest_number_of_epochs_holds_however_it_is_given(folder: Path) -> None:
    kept_search(folder, "first", epochs=3, fixed={}, protocol=PROTOCOL)
    options = Options(resume=True, name="first", fixed={"epochs": 2})
    record, space, _ = asked_of(options)
    assert {config.epochs for config in space.samples} == {2}
    kept_search(folder, "second", epochs=record.epochs, fixed=record.fixed, protocol=PROTOCOL)
    _, space, _ = asked_of(Options(resume=True, name="second", epochs=4, fixed={}))
    assert {config.epochs for config in space.samples} == {4}


def test_resume_may_repeat_the_metric_of_a_first_start_over_the_files(folder: Path) -> None:
    kept_search(folder, "first", metrics=["ce_sub"], said=SAID, protocol=PROTOCOL)
    options = Options(resume=True, name="first", fixed={}, space=UPath("asked.py"))
    record, space, _ = asked_of(options)
    assert (record.metrics, space.metrics) == (["ce_sub"], ("ce_sub",))


def test_another_number_of_trials_in_the_file_holds_unless_the_command_line_says_another(
    folder: Path,
) -> None:
    kept_search(folder, "first", num_trials=9, said=SAID, protocol=PROTOCOL)
    options = Options(resume=True, name="first", fixed={}, space=UPath("asked.py"))
    assert asked_of(options)[0].num_trials == 9, "the first start's --trials"
    text = (folder / "asked.py").read_text()
    assert "NUM_TRIALS = 3" in text
    (folder / "asked.py").write_text(text.replace("NUM_TRIALS = 3", "NUM_TRIALS = 12"))
    assert asked_of(options)[0].num_trials == 12
    assert asked_of(replace(options, trials=10))[0].num_trials == 10


# --- A start that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("study", [[], ["--study", "sqlite:///mine.db"]])
def test_start_that_fails_before_its_first_trial_leaves_nothing_and_can_be_corrected(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    study: list[str],
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
) -> None:
    command = ["--space", "asked.py", "--name", "again", *sources, *study]

    def broken(*args: object, **kwargs: object) -> str:
        assert (folder / "runs/again/search.json").exists()
        raise UserError("no Ray cluster answers there")

    monkeypatch.setattr("search.session._run", broken)
    for _ in range(2):
        assert main(command) == 2
        assert capsys.readouterr().err == "error: no Ray cluster answers there\n"
        assert [*files_in(folder)] == ["asked.py"]
        assert not (folder / "runs").exists()


def test_start_that_fails_can_be_corrected_in_a_folder_that_was_there(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
) -> None:
    (folder / "runs/again").mkdir(parents=True)
    (folder / "runs/again/notes.txt").touch()

    def broken(*args: object, **kwargs: object) -> str:
        raise UserError("no Ray cluster answers there")

    monkeypatch.setattr("search.session._run", broken)
    for _ in range(2):
        assert main(["--space", "asked.py", "--name", "again", *sources]) == 2
        assert capsys.readouterr().err == "error: no Ray cluster answers there\n"
    assert (folder / "runs/again/notes.txt").exists()


def test_start_that_fails_leaves_the_study_that_another_made_meanwhile_in_the_same_database(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> str:
        create_study("sqlite:///mine.db", "other", ("score",)).ask()
        raise UserError("no Ray cluster answers there")

    monkeypatch.setattr("search.session._run", broken)
    command = ["--space", "asked.py", "--name", "again", "--study", "sqlite:///mine.db", *sources]
    assert main(command) == 2
    assert (folder / "mine.db").exists()
    assert optuna.get_all_study_names("sqlite:///mine.db") == ["other"]


def test_start_that_fails_leaves_other_searches_and_an_older_database(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
) -> None:
    create_study("sqlite:///mine.db", "other", ("score",)).ask()
    kept_search(folder, "first")
    before = {*files_in(folder)}

    def broken(*args: object, **kwargs: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.session._run", broken)
    command = ["--space", "asked.py", "--name", "again", "--study", "sqlite:///mine.db", *sources]
    assert main(command) == 130
    assert {*files_in(folder)} == before
    assert optuna.get_all_study_names("sqlite:///mine.db") == ["other"]


def test_failure_after_a_trial_was_asked_for_keeps_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str]
) -> None:
    def broken(search: object, study: optuna.Study, *args: object) -> str:
        study.ask()
        raise UserError("the power is out")

    monkeypatch.setattr("search.session._run", broken)
    assert main(["--space", "asked.py", "--name", "again", *sources]) == 2
    assert {"runs/again/search.json", "runs/again/space.py", "runs/again/study.db"} <= {
        *files_in(folder)
    }


def test_database_that_goes_away_for_good_is_one_line_and_the_command_that_resumes(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
) -> None:
    def cut_short(search: object, study: optuna.Study, *args: object) -> str:
        study.ask()
        (folder / "mine.db").write_bytes(b"no database" * 1000)
        raise AssertionError(study.ask())

    monkeypatch.setattr("search.session._run", cut_short)
    command = ["--space", "asked.py", "--name", "again", "--study", "sqlite:///mine.db"]
    assert main([*command, *sources]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    url = f"sqlite:///{folder / 'mine.db'}"
    assert line == f"stopped: the study {url} cannot be used any more: file is not a database"
    assert said.out.endswith("\npython -m search.run --resume --name again\n")


# --- One command, repeated by a machine ----------------------------------------------------------


def one_more_trial(search: object, study: optuna.Study, *args: object) -> tuple[str, str]:
    """Stand for a driver that ends after a trial: the search goes on when it is called again."""
    trial = study.ask()
    trial.set_user_attr("config", TrialConfig(lr=0.01).to_dict())
    trial.set_user_attr("metrics", {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5)})
    study.tell(trial, 0.5)
    return "FINISHED" if len(study.trials) == 3 else "KILLED", ""


@pytest.fixture
def repeated(sources: list[str]) -> list[str]:
    """What a cron line says, with all that a first start may be told."""
    return [
        "--resume", "--space", "asked.py", "--name", "again", *sources, "--trials", "3",
        "--epochs", "2", "--metric", "score", "--seed", "0", "--set", "val_fraction=0.2",
        "--study", "sqlite:///mine.db", "--experiment", "cron", "--keep-models", "none",
        "--concurrency", "1", "--gpus-per-trial", "0", "--time-budget", "1h",
    ]  # fmt: skip


def test_one_command_starts_a_search_and_goes_on_with_it_until_nothing_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, repeated: list[str]
) -> None:
    monkeypatch.setattr("search.session._run", one_more_trial)
    records = []
    for code in (130, 130, 0):
        assert main(repeated) == code
        records.append((folder / "runs/again/search.json").read_bytes())
    assert records == [records[0]] * 3
    assert len(optuna.load_study(study_name="again", storage="sqlite:///mine.db").trials) == 3


@pytest.mark.parametrize("is_killed", [False, True])
def test_command_that_is_repeated_starts_anew_where_a_start_failed_before_its_first_trial(
    folder: Path, monkeypatch: pytest.MonkeyPatch, repeated: list[str], is_killed: bool
) -> None:
    def broken(*args: object, **kwargs: object) -> str:
        raise UserError("no Ray cluster answers there")

    monkeypatch.setattr("search.session._run", broken)
    if is_killed:  # when it had taken back what makes it a search, and the folder not yet
        monkeypatch.setattr("search.start.New.remove", lambda self: None)
    assert main(repeated) == 2
    assert (folder / "runs/again").exists() == is_killed
    monkeypatch.setattr("search.session._run", one_more_trial)
    assert main(repeated) == 130


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["--seed", "1"], "--seed was 0, now it is 1"),
        (["--metric", "ce_sub"], "--metric was score, now it is ce_sub"),
        (["--set", "val_fraction=0.3"], "--set val_fraction was 0.2, now it is 0.3"),
    ],
)
def test_command_that_is_repeated_with_another_question_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, repeated: list[str],
    now: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("search.session._run", one_more_trial)
    assert main(repeated) == 130
    capsys.readouterr()
    place = repeated.index(now[0]) + 1
    other = [*repeated[:place], now[1], *repeated[place + 1 :]]
    assert mistake(capsys, *other).startswith(f"{said}: the finished trials would not")


def test_command_that_is_repeated_with_a_changed_space_file_says_so(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    repeated: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("search.session._run", one_more_trial)
    line = "asked.py is not the space file of before: new trials follow it as it is now"
    for text, is_said in ((SPACE, False), (SPACE, False), (SPACE.replace("1e-1", "1.0"), True)):
        (folder / "asked.py").write_text(text)
        main(repeated)
        assert (line in capsys.readouterr().out.splitlines()) == is_said


def terminated(*_: object, **__: object) -> Any:
    """Stand for a step at which a batch system ends the command."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", ["load_data", "check_samples", "study_of", "ray"])
def test_sigterm_before_the_first_trial_leaves_nothing_and_the_command_can_be_repeated(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    repeated: list[str], step: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        if step == "ray":
            patch.setattr("search.session._run", terminated_by_rays_handler)
        else:
            patch.setattr(f"search.session.{step}", terminated)
        assert main(repeated) == 130
    assert capsys.readouterr().err == "interrupted: repeat the command to go on\n"
    assert not (folder / "runs").exists()
    monkeypatch.setattr("search.session._run", one_more_trial)
    assert main(repeated) == 130


def terminated_by_rays_handler(*_: object) -> Any:
    """Stand for a SIGTERM while Ray starts, when it has taken the signal for itself."""
    sys.exit(signal.SIGTERM)


@pytest.mark.parametrize("step", ["load_data", "finish"])
def test_sigterm_to_a_search_that_has_trials_ends_with_the_command_that_resumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, repeated: list[str],
    step: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("search.session._run", one_more_trial)
    assert main(repeated) == 130
    after_budget = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(f"search.session.{step}", terminated)
    assert main(repeated) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == after_budget
    assert last.startswith("python -m search.run --resume --name again")


def test_command_that_is_repeated_starts_no_second_search_in_a_study_that_has_one(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    repeated: list[str],
) -> None:  # fmt: skip
    """As where the storage is not mounted yet."""
    monkeypatch.setattr("search.session._run", one_more_trial)
    assert main(repeated) == 130
    (folder / "runs").rename(folder / "not mounted")
    capsys.readouterr()
    assert main(repeated) == 2
    assert "already has a study named 'again'" in capsys.readouterr().err


# --- What is printed -----------------------------------------------------------------------------


def test_commands_that_are_printed_can_be_typed_where_the_storage_has_a_space(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
) -> None:
    def done(search: object, study: optuna.Study, *args: object) -> tuple[str, None]:
        trial = study.ask()
        trial.set_user_attr("config", TrialConfig().to_dict())
        trial.set_user_attr("metrics", {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5)})
        study.tell(trial, 0.5)
        return "FINISHED", None

    monkeypatch.setattr("search.session._run", done)
    assert main(["--space", "asked.py", "--storage", "my runs", *sources]) == 0
    lines = capsys.readouterr().out.splitlines()
    (report,) = (line for line in lines if "results.report" in line)
    assert shlex.split(report)[3:] == ["--name", "asked", "--storage", "my runs"]


def test_search_that_another_driver_changed_while_a_resume_started_is_not_overwritten(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
) -> None:
    monkeypatch.setattr("search.session._run", lambda *_: ("FINISHED", None))
    assert main(["--space", "asked.py", *sources]) == 1
    file = folder / "runs/asked/search.json"

    def changed(*_: object) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"study_name": "asked~2"}))

    monkeypatch.setattr("search.session.check_samples", changed)
    capsys.readouterr()
    assert main(["--resume", "--name", "asked", "--trials", "9"]) == 2
    assert "another driver started or went on with this search while" in capsys.readouterr().err
    assert json.loads(file.read_text())["study_name"] == "asked~2"


def test_tracking_uri_of_the_environment_whose_password_ends_nobody_knows_where_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What were left of the password behind the first @ would be stored."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:PL@UGH@h/d")
    message = mistake(capsys, "--space", "asked.py")
    assert message.startswith("MLFLOW_TRACKING_URI: it is not clear where the password ends")
    assert "UGH" not in message


def test_text_of_the_user_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, sources: list[str]
) -> None:
    (folder / "marked.py").write_text(
        '"""Is [/data] or [bold]x[/bold] a :car:?"""\nNUM_TRIALS = 3\nEPOCHS = 1\n'
        "def space(trial):\n"
        "    trial.suggest_categorical('[red]', ['[/]', ':smile:'])\n    return {}\n"
    )
    assert main(["--space", "marked.py", *sources, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "marked: Is [/data] or [bold]x[/bold] a :car:?" in lines
    assert any(line.split() == ["[red]", "choice", "[/],", ":smile:"] for line in lines)
    assert "parameter [red] changes no configuration: it only costs the sampler trials" in lines


def test_no_part_prints_through_a_console_that_reads_markup() -> None:
    root = Path(__file__).parents[2]
    made = {
        f"{file.relative_to(root)}"
        for package in ("search", "results", "trainable")
        for file in (root / package).rglob("*.py")
        if re.search(r"(?<![\w.])Console\(", file.read_text())
    }
    assert made == {"results/terminal.py"}


def test_metric_over_subclasses_that_these_data_cannot_hold_out_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, sources: list[str]
) -> None:
    """A fraction that is above 0, and none of 24 subclasses."""
    options = ["--metric", "unseen_sub_second", "--set", "second_pseudo_novel_fraction=0.001"]
    assert main(["--space", "asked.py", *sources, *options]) == 2
    message = capsys.readouterr().err
    assert "unseen_sub_second is over subclasses that `second_pseudo_novel_fraction`" in message
    assert [*files_in(folder)] == ["asked.py"]
