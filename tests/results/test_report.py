"""What a search found, as tables and pictures: also when it found little or nothing."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from upath import UPath

from results.report import __main__ as report
from results.report import answer
from results.report.tables import write_tables
from tests.made_searches import Search
from trainable.user_parts import PARTS_FOLDER, UserParts


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


def row_of(table: str, number: int) -> str:
    """Return the first line that begins with a trial's number."""
    lines = [line for line in table.splitlines() if line.split()[:1] == [f"{number:05d}"]]
    return lines[0] if lines else ""


# --- Tables --------------------------------------------------------------------------------------


def test_search_without_any_trial_says_so(search: Search) -> None:
    assert search.tables().strip().splitlines() == [
        "asked: 0 trials (none yet)",
        "No trial has finished, so there is no result.",
    ]


def test_search_in_which_all_failed_gives_the_reasons_by_number(search: Search) -> None:
    for reason in ("the loss is nan", "out of memory", "the loss is nan"):
        search.tell("FAIL", reason=reason)
    lines = search.tables().strip().splitlines()
    assert lines == [
        "asked: 3 trials (3 FAIL)",
        "No trial has finished, so there is no result.",
        "2 failed: the loss is nan",
        "1 failed: out of memory",
    ]


def test_failed_trial_that_ran_again_is_counted_once_everywhere(search: Search) -> None:
    search.tell()
    search.tell("FAIL", reason="lost")
    search.tell("FAIL", reason="lost")
    search.tell(retry_of=2)
    assert "3 trials (2 COMPLETE, 1 FAIL); 1 more failed and ran again" in search.tables()
    read = search.read()
    assert read.states == "2 complete, 1 fail, 1 more failed and ran again"
    assert dict(answer.facts(read))["trials"] == read.states
    (row,) = answer.comparison([read]).to_dict("records")
    assert (row["complete"], row["failed"]) == (2, 1)


def test_search_that_was_only_pruned_has_no_result(search: Search) -> None:
    search.tell("PRUNED")
    assert "asked: 1 trial (1 PRUNED)" in search.tables()
    assert "No trial has finished" in search.tables()


def test_tables_show_baselines_best_of_each_architecture_and_best_of_all(search: Search) -> None:
    search.tell(baseline=True, score=0.2)
    search.tell(score=0.4)
    search.tell(score=0.3)
    search.tell(architecture="two_models", score=0.6)
    search.tell("PRUNED", score=0.9)
    text = search.tables()
    baselines, _, rest = text.partition("Best by architecture")
    assert row_of(baselines, 0).split()[1] == "0.200"
    assert "0.400" in row_of(rest, 1)
    assert "0.600" in row_of(rest, 3)
    assert row_of(text, 2) == row_of(text, 4) == ""
    assert "Best: trial 00003, score 0.600, two_models" in rest
    assert text.strip().startswith("asked: 5 trials (4 COMPLETE, 1 PRUNED)")


def test_baseline_that_is_not_complete_shows_its_state(search: Search) -> None:
    search.tell("FAIL", baseline=True)
    search.tell(score=0.4)
    assert row_of(search.tables(), 0).split()[1] == "FAIL"


def test_best_by_a_metric_to_minimise_is_the_lowest(tmp_path: Path) -> None:
    search = Search(tmp_path, ("ce_sub",))
    for value in (1.5, 0.7, 2.0):
        search.tell(ce_sub=value)
    assert "Best: trial 00001, ce_sub 0.700" in search.tables()


def test_tables_of_several_objectives_show_the_front(tmp_path: Path) -> None:
    search = Search(tmp_path, ("seen_sub", "unseen_sub"))
    search.tell(seen_sub=0.9, unseen_sub=0.1, score=0.2)
    search.tell(seen_sub=0.8, unseen_sub=0.1, score=0.3)
    search.tell(seen_sub=0.1, unseen_sub=0.9, score=0.1)
    _, _, front = search.tables().partition("Pareto front of seen_sub, unseen_sub")
    assert row_of(front, 0)
    assert row_of(front, 1) == ""
    assert row_of(front, 2)


# --- Files ---------------------------------------------------------------------------------------


def test_report_without_a_complete_trial_is_a_table_and_a_page_that_says_so(search: Search) -> None:
    search.tell("PRUNED")
    search.tell("FAIL", reason="out of <memory>")
    names = search.write()
    assert names[:2] == ["trials.csv", "report/index.html"]
    assert not any(name.endswith("tradeoff.png") for name in names)
    assert [*pd.read_csv(search.folder / "trials.csv")["state"]] == ["PRUNED", "FAIL"]
    page = (search.folder / "report/index.html").read_text()
    assert "No trial has finished" in page
    assert "out of &lt;memory&gt;" in page


def test_everything_in_the_page_is_beside_it_as_png_svg_and_csv(search: Search) -> None:
    for number in range(6):
        search.tell(lr=10 ** (-3 + number / 8), score=number / 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = search.write()
    page = (search.folder / "report/index.html").read_text()
    for stem in ("questions", "history", "learning", "importance", "parallel", "timeline"):
        if f'id="{stem}"' in page:
            assert {f"report/{stem}.{each}" for each in ("png", "svg", "csv")} <= {*names}, stem
    assert {"report/table.csv", "report/table.tex", "report/tradeoff.png"} <= {*names}
    linked = set(re.findall(r'href="([a-z_0-9-]+\.[a-z]+)"', page))
    assert {f"report/{name}" for name in linked} == {*names} - {"trials.csv", "report/index.html"}
    with Image.open(search.folder / "report/history.png") as image:
        image.load()
        assert image.width > 500


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report, of a configuration with two seeds and another one."""
    search = Search(tmp_path_factory.mktemp("written"))
    search.tell(architecture="two_models", score=0.4)
    search.tell(architecture="two_models", seed=1, repeat_of=0, score=0.6)
    search.tell(score=0.3)
    search.write()
    return search.folder / "report"


def test_a_page_needs_no_network_and_no_other_file(written: Path) -> None:
    page = (written / "index.html").read_text()
    loaded = re.findall(r'(?:src|xlink:href|@import|url)[=(]\s*"?([^")\s]+)', page)
    assert [each for each in loaded if not each.startswith(("#", "data:"))] == []


def test_latex_of_the_main_table_is_escaped_and_has_mean_and_range(written: Path) -> None:
    text = (written / "table.tex").read_text()
    assert r"two\_models" in text
    assert "50.0 (40.0-60.0)" in text
    assert r"\toprule" in text


def test_trials_table_holds_configuration_and_metrics(search: Search) -> None:
    search.tell(baseline=True, score=0.2)
    search.tell(lr=0.01, score=0.4)
    write_tables(UPath(search.folder), search.trials, search.record)
    table = pd.read_csv(search.folder / "trials.csv")
    assert [*table["number"]] == [0, 1]
    assert [*table["lr"]] == [1e-3, 0.01]
    assert [*table["score"]] == [0.2, 0.4]
    assert "config" not in table


# --- The command ---------------------------------------------------------------------------------


def test_command_prints_tables_and_names_its_files(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    search.tell(score=0.4)
    arguments = ["--name", search.folder.name, "--storage", str(search.folder.parent)]
    assert report.main(arguments) == 0
    out = capsys.readouterr().out
    assert "Best: trial 00000, score 0.400" in out
    for name in ("trials.csv", "report/index.html"):
        assert f"wrote {search.folder / name}\n" in out


def test_searches_with_parts_of_their_own_are_shown_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        for name in ("first", "second"):
            parts = UserParts(
                files=("mine.py",),
                sources={
                    "mine.py": "from torch.nn import Linear\nfrom trainable.parts import HEADS\n"
                    f"HEADS.register('{name}_head', source='x')(Linear)\n"
                },
            )
            parts.use()
            search = Search(tmp_path / name)
            search.tell(head=f"{name}_head", score=0.4)
            search.tell(head=f"{name}_head", score=0.3, lr=1e-2)
            parts.save(UPath(search.folder / PARTS_FOLDER))
            replace(search.record, said={"PARTS": {"files": ["mine.py"]}}).save(
                UPath(search.folder)
            )
        names = ["--name", "first", "--name", "second", "--name", "first"]
        assert report.main([*names, "--storage", str(tmp_path)]) == 0
    finally:
        UserParts().use()
    assert capsys.readouterr().out.count("Best: trial 00000, score 0.400") == 2


def test_page_written_anew_takes_with_it_what_only_the_earlier_one_showed(tmp_path: Path) -> None:
    first, other = Search(tmp_path / "first"), Search(tmp_path / "other")
    first.tell(score=0.4)
    other.tell(score=0.5)
    report.write_report([first.read(), other.read()])
    folder = first.folder / "report"
    (folder / "searches.txt").write_text("a person's own")
    assert (folder / "searches.csv").exists()
    names = {Path(name).name for name in first.write()} - {"trials.csv"}
    assert {"index.html", "history.png", "history.svg"} <= names, "it cannot be written again"
    assert {file.name for file in folder.iterdir()} == names | {"searches.txt"}


def test_command_for_a_search_that_is_not_there_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--name", "other", "--storage", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / 'other'}: no search of that name; ")
    assert captured.out == ""


def test_command_for_a_damaged_search_exits_2_and_writes_nothing(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    (search.folder / "search.json").write_text("{")
    before = sorted(search.folder.iterdir())
    arguments = ["--name", search.folder.name, "--storage", str(search.folder.parent)]
    assert report.main(arguments) == 2
    assert "search.json is damaged" in capsys.readouterr().err
    assert sorted(search.folder.iterdir()) == before
