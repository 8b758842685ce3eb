"""search.log has what a search said, and stops nothing."""

import io
import re
import threading
from pathlib import Path

import pytest
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from upath import UPath

from results.terminal import plain_console
from search.log import SearchLog
from trainable.errors import UserError

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def lines_of(folder: UPath) -> list[str]:
    """Return the lines of the log, less the time of each."""
    lines = (folder / "search.log").read_text().splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    return [re.sub(rf"^{STAMP}(  )?", "", line) for line in lines]


@pytest.fixture(params=["disk", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    if request.param == "disk":
        return UPath(tmp_path)
    objects = UPath(f"memory:///log-{tmp_path.name}")
    objects.mkdir()
    return objects


def test_log_holds_what_was_said_before_and_after_there_was_a_folder(folder: UPath) -> None:
    for word in ("first", "second"):  # a resume appends
        log = SearchLog()
        with log.kept():
            log.console(quiet=True).print(f"{word}: hello")
            log.open(folder)
            log.console(quiet=True).print(Text(f"{word}: bye", style="red"))
    assert lines_of(folder) == ["first: hello", "first: bye", "second: hello", "second: bye"]


def test_log_has_no_control_characters_no_secrets_and_no_cut_tables(
    folder: UPath, capsys: pytest.CaptureFixture[str]
) -> None:
    log = SearchLog()
    log.open(folder)
    with log.kept():
        console = log.console(width=20, force_terminal=True)
        console.print("a \x1b[31mred\x07 line of postgresql://me:secret@host/db", style="bold")
        table = Table(box=None, padding=0, show_header=False)
        table.add_column(no_wrap=True)
        table.add_row("a" * 100)
        console.print(table, soft_wrap=False)
    assert lines_of(folder) == ["a red line of postgresql://me:***@host/db", "a" * 100]


def test_mistake_that_ends_a_search_is_in_its_log(folder: UPath) -> None:
    log = SearchLog()
    log.open(folder)
    with pytest.raises(UserError), log.kept():
        raise UserError("--gpus-per-trial must be less")
    assert lines_of(folder) == ["error: --gpus-per-trial must be less"]


def test_search_that_never_began_leaves_no_log(tmp_path: Path) -> None:
    log = SearchLog()
    with log.kept():
        log.console(quiet=True).print("reading")
    assert [*tmp_path.iterdir()] == []


def test_log_that_cannot_be_written_is_told_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.log").mkdir()
    log = SearchLog()
    with log.kept():
        log.open(UPath(tmp_path))
        log.console().print("one")
        log.console().print("two")
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    (line,) = captured.err.splitlines()
    assert re.match(rf"{tmp_path}/search.log cannot be written \(.*\); the search goes on", line)


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log = SearchLog()
    log.open(UPath(tmp_path))
    console = log.console(quiet=True)

    def say(word: str) -> None:
        for _ in range(50):
            console.print(word * 20)

    threads = [threading.Thread(target=say, args=(word,)) for word in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(lines_of(UPath(tmp_path))) == sorted(w * 20 for w in "abcd" for _ in range(50))


def test_lines_are_taken_while_a_store_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store's own thread may warn, and what writes waits for that thread."""
    folder = UPath(f"memory:///log-{tmp_path.name}")
    folder.mkdir()
    write, log = type(folder).write_text, SearchLog()

    def warning(self: UPath, text: str) -> int:
        thread = threading.Thread(target=log.add, args=("a warning",))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        return write(self, text)

    monkeypatch.setattr(type(folder), "write_text", warning)
    with log.kept():
        log.add("first")
        log.open(folder)
        monkeypatch.undo()
    assert lines_of(folder) == ["first", "a warning"]


def test_start_that_failed_gets_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (UPath(tmp_path / "gone"), UPath(f"memory:///log-{tmp_path.name}/gone")):
        folder.mkdir(parents=True)
        log = SearchLog()
        with log.kept():
            log.add("first")
            log.open(folder)
            folder.fs.rm(str(folder.path), recursive=True)
            log.add("second")
        assert not folder.exists()
    assert capsys.readouterr().err == ""


def test_a_notebook_shows_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich takes every console for the notebook's own, whatever its file."""
    shown: list[str] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    heard: list[str] = []
    plain_console(listener=heard.append).print("once")
    plain_console(listener=heard.append, quiet=True).print("only heard")
    assert (shown, heard) == (["once\n"], ["once\n", "only heard\n"])


def test_a_row_of_a_table_is_one_line_in_a_pipe_and_wraps_on_a_terminal() -> None:
    table = Table(title="Best", title_justify="left", box=None)
    table.add_column("trial")
    table.add_column("configuration", overflow="fold")
    table.add_row("00015", "two_models, frozen, " * 20)
    shown = {}
    for is_terminal in (False, True):
        file, heard = io.StringIO(), list[str]()
        console = plain_console(
            file=file, width=80, force_terminal=is_terminal, color_system=None,
            listener=heard.append,
        )  # fmt: skip
        console.print(table, soft_wrap=False)
        console.print(Padding("and more " * 20, (0, 0, 0, 2), expand=False), soft_wrap=False)
        shown[is_terminal] = file.getvalue()
        assert "".join(heard) == shown[False], "the log is as wide as a pipe"
    title, head, row, line = shown[False].splitlines()
    assert (title, head.split()) == ("Best", ["trial", "configuration"])
    assert row.endswith("00015  " + ("two_models, frozen, " * 20).rstrip())
    assert line == "  " + ("and more " * 20).rstrip()
    assert all(len(each) <= 80 for each in shown[True].splitlines())
    assert len(shown[True].splitlines()) > 9
