"""The command `noveltune`, from any folder: the same commands, the shipped spaces, no shadows."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from upath import UPath

from noveltune.command import COMMANDS, main
from results.record import RECORD_FILE
from search.shipped import FOLDER, shipped, space_file
from tests.commands import ROOT, run
from trainable.errors import UserError, typed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_is_typed(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/noveltune"])
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: noveltune {name} [-h]")
    monkeypatch.setattr(sys, "argv", ["/usr/lib/search/run.py"])
    module = COMMANDS[name][0].removesuffix(".__main__")
    assert typed(module) == f"python -m {module}"


def test_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serach"]) == 2
    assert capsys.readouterr().err == (
        "error: noveltune has no command 'serach' (did you mean 'search'?); it has search, refit, "
        "report, predict, evaluate, train\n"
    )


def test_who_watches_is_told_at_once_what_a_command_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for is_watched in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_watched=is_watched: is_watched)
        assert main(["report", "--name", "none"]) == 2
        told = capsys.readouterr().err.splitlines()
        assert told[:-1] == ["report: loading what it needs"] * is_watched


# --- Shipped spaces ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full_ablation", "full_ablation.py", "spaces/full_ablation.py"])
def test_shipped_space_is_found_by_its_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full_ablation").mkdir()
    assert space_file(UPath(name)) == FOLDER / "full_ablation.py"


@pytest.mark.parametrize("name", ["smoke", "smoke.py", "spaces/smoke.py"])
def test_file_in_the_working_folder_wins_over_a_shipped_space(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / (name if name.endswith(".py") else f"{name}.py")
    own.parent.mkdir(exist_ok=True)
    own.touch()
    assert space_file(UPath(name)).resolve() == own


def test_folder_as_a_space_is_read_as_what_it_is(tmp_path: Path) -> None:
    for given in (".", "/", str(tmp_path)):
        assert space_file(UPath(given)) == UPath(given)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("full_ablatoin", "full_ablation"),
        ("spaces/papr.py", "paper"),
        ("brids.py", "birds.py"),
        ("brids", "birds.py"),
    ],
)
def test_misspelt_space_is_answered_with_the_nearest(
    name: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.py").touch()
    with pytest.raises(UserError, match=rf"did you mean '{nearest}'\?\); shipped are backbones, "):
        space_file(UPath(name))


def test_every_shipped_file_is_a_space_and_none_is_missing() -> None:
    assert {f"{name}.py" for name in shipped()} == {
        file.name for file in (ROOT / "spaces").glob("*.py") if file.name != "__init__.py"
    }


# --- Files that are called as a package is -------------------------------------------------------


AS_MODULE = ("-m", "search.run")
AS_COMMAND = ("-c", "from noveltune.command import run; run()", "search")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("results.py", AS_MODULE),
        ("trainable/__init__.py", AS_MODULE),
        ("spaces.py", AS_MODULE),
        ("search.py", AS_COMMAND),
        ("results.py", AS_COMMAND),
    ],
)
def test_file_called_as_a_package_is_named_in_one_line_and_not_read(
    file: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    for name in (file, "upath.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong one was read')")
    done = run(tmp_path, *command)
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first == (
        f"{tmp_path / file} has the name of a package of noveltune, and is not read: rename it, or "
        "start in another folder"
    )
    assert second.startswith("error: --space FILE is needed")


def test_python_takes_a_search_py_of_the_working_folder_unless_told_not_to(tmp_path: Path) -> None:
    """It ends before anything of ours runs; what it says and the cure are in the README."""
    (tmp_path / "search.py").touch()
    said = "__path__ attribute not found on 'search'"
    assert said in run(tmp_path, *AS_MODULE).err
    told = run(tmp_path, "-P", *AS_MODULE)
    assert (told.code, told.err.partition(" is needed")[0]) == (2, "error: --space FILE")
    readme = (ROOT / "README.md").read_text()
    assert said in readme
    assert "`python -P -m`" in readme


def test_import_names_the_file_that_python_would_take_for_a_package(tmp_path: Path) -> None:
    (tmp_path / "results.py").touch()
    done = run(tmp_path, "-c", "import noveltune; noveltune.open('runs/birds')")
    assert done.err.splitlines()[-1] == (
        f"ImportError: {tmp_path / 'results.py'} has the name of a package of noveltune, "
        "`results`, and Python finds it first: rename it, or work in another folder, and start "
        "Python anew"
    )


# --- Ctrl-C ---------------------------------------------------------------------------------------

# A shell starts what it runs in the background deaf to Ctrl-C, and so these tests, too.
LISTEN = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        (("-m", "results.report"), "optuna"),
        (("-m", "results.predict"), "mlflow"),
        (("-m", "trainable.train"), "torch"),
        ((*AS_COMMAND[:2], "evaluate"), "mlflow"),
    ],
)
def test_ctrl_c_during_the_imports_is_answered_in_one_line(
    command: tuple[str, ...], imported: str, tmp_path: Path
) -> None:
    ours = tmp_path / "found first"
    ours.mkdir()
    (ours / f"{imported}.py").write_text(f"{LISTEN}os.kill(os.getpid(), signal.SIGINT)")
    done = run(tmp_path, *command, PYTHONPATH=f"{ROOT}:{ours}")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_ctrl_c_that_falls_into_a_destructor_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text(
        f"{LISTEN}import time\n"
        "class Freed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.time()\n"
        "Freed()\n"
        "time.sleep(60)\n"
    )
    done = run(tmp_path, "-m", "results.report", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_an_error_that_no_interrupt_led_to_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('a bug')")
    done = run(tmp_path, "-m", "trainable.train", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.endswith("RuntimeError: a bug\n")


# --- A plain installation ------------------------------------------------------------------------


@pytest.mark.slow
def test_plain_install_has_the_command_every_room_and_every_space(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "runs", ".*")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    without = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *without, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("noveltune-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    packages = ("noveltune", "search", "results", "trainable", "spaces")
    assert held == {
        str(file.relative_to(ROOT))
        for package in packages
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    subprocess.run([*pip, "install", *without, "--target", str(site), str(wheel)], check=True)
    command = [str(site / "bin/noveltune"), "search", "--space", "full_ablation", "--dry-run"]
    work = tmp_path / "work"
    work.mkdir()
    done = run(work, *command, PYTHONPATH=str(site))
    assert done.code == 0, done
    assert " trials by score" in done.out
    assert not (work / "runs" / "full_ablation" / RECORD_FILE).exists()
