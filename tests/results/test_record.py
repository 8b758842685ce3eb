"""What was asked of a search comes back as it was saved, or is named where it cannot."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from upath import UPath

from results.record import (
    RECORD_FILE,
    Repeat,
    RunError,
    absolute_url,
    load_record,
    run_folder,
    study_url,
)
from tests.made_searches import record
from trainable.schema import SCHEMA, SchemaError, version


def test_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record(metrics=["seen_sub", "unseen_sub"]).save(UPath(tmp_path))
    assert load_record(UPath(tmp_path)) == record(metrics=["seen_sub", "unseen_sub"])
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]


def test_record_keeps_its_repeats(tmp_path: Path) -> None:
    repeats = [Repeat(number=4, trial=2, seed=1), Repeat(number=5, trial=2, seed=2)]
    record(repeats=repeats).save(UPath(tmp_path))
    assert load_record(UPath(tmp_path)).repeats == repeats


def test_record_of_before_there_were_repeats_has_none(tmp_path: Path) -> None:
    old = asdict(record())
    del old["repeats"]
    (tmp_path / RECORD_FILE).write_text(json.dumps(old))
    assert load_record(UPath(tmp_path)) == record()


def test_searches_are_kept_in_runs_unless_told_otherwise(tmp_path: Path) -> None:
    assert run_folder("asked", None) == Path("runs/asked")
    assert run_folder("asked", UPath(tmp_path)) == tmp_path / "asked"


def test_study_is_found_in_the_folder_wherever_that_is_moved(tmp_path: Path) -> None:
    assert study_url(UPath(tmp_path), record()) == f"sqlite:///{tmp_path.resolve() / 'study.db'}"
    assert study_url(UPath(tmp_path), record(study="mysql://host/db")) == "mysql://host/db"


def test_search_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    for name in ("second", "first"):
        (tmp_path / name).mkdir()
        record(name=name).save(UPath(tmp_path / name))
    (tmp_path / "no search").mkdir()
    with pytest.raises(RunError) as raised:
        load_record(UPath(tmp_path / "third"))
    expected = f"{tmp_path / 'third'}: no search of that name; there are: first, second"
    assert str(raised.value) == expected


def test_search_that_is_not_there_is_said_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"no search of that name; there is none in .* or pass --storage$"
    ):
        load_record(UPath(tmp_path / "third"))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"asked"',
        b"\xff\xfe",
        b"{}",
        json.dumps(asdict(record()) | {"unknown": 1}).encode(),
        json.dumps(asdict(record()) | {"repeats": [{"trial": 1}]}).encode(),
        json.dumps(asdict(record()) | {"repeats": [5]}).encode(),
        json.dumps(asdict(record()) | {"repeats": None}).encode(),
        json.dumps(asdict(record())).encode()[:-20],
    ],
)
def test_damaged_record_is_named_and_left_as_it_is(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(damage)
    with pytest.raises(RunError, match=r"search\.json is damaged .*; nothing was changed"):
        load_record(UPath(tmp_path))
    assert (tmp_path / RECORD_FILE).read_bytes() == damage


def test_tilde_in_the_url_of_a_sqlite_file_is_the_home_folder() -> None:
    assert absolute_url("sqlite:///~/a.db") == f"sqlite:///{Path.home().resolve() / 'a.db'}"


def test_record_of_a_later_version_is_refused_naming_both_not_called_damaged(
    tmp_path: Path,
) -> None:
    later = asdict(record()) | {"schema": SCHEMA + 1, "version": "9.8.7", "unknown": 1}
    (tmp_path / RECORD_FILE).write_text(json.dumps(later))
    with pytest.raises(
        SchemaError, match=r"noveltune 9\.8\.7 in schema .*, and noveltune "
    ) as raised:
        load_record(UPath(tmp_path))
    assert version() in str(raised.value)
