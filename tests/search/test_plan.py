"""A plan is made of options and a record alone: without Ray, MLflow, or a file on a disk."""

import uuid
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from results.record import SearchRecord
from search.plan import ON_RESUME, Options, SearchError, changed, new_record, plan
from trainable.data.splits import PROTOCOL

MLFLOW = "sqlite:////somewhere/mlflow.db"
SPACE = "NUM_TRIALS = 3\ndef space(trial):\n    return {'lr': trial.suggest_float('lr', 1e-3, 1)}\n"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def memory() -> UPath:
    """A folder that is on no disk, with a space file."""
    folder = UPath(f"memory://{uuid.uuid4().hex}")
    (folder / "asked.py").write_text(SPACE)
    return folder


def options(**given: Any) -> Options:
    return Options(**{"fixed": {}, **given})


def first(**given: Any) -> SearchRecord:
    return new_record(options(**given), "first", MLFLOW)


GIVEN: dict[str, tuple[Any, str, Any]] = {
    "trials": (9, "num_trials", 9),
    "epochs": (0, "epochs", 0),
    "data": ("/birds", "data", "/birds"),
    "novel": ("cifar100", "novel", "cifar100"),
    "weights": (Path("/weights"), "weights", "/weights"),
    "cache": (Path("/cache"), "cache", "/cache"),
    "study": ("postgresql://host/d", "study", "postgresql://host/d"),
    "tracking_uri": ("http://host", "tracking_uri", "http://host"),
    "experiment": ("moved", "experiment", "moved"),
    "keep_models": ("all", "keep_models", "all"),
    "max_reruns": (0, "max_reruns", 0),
    "metric": (("ce_sub",), "metrics", ["ce_sub"]),
    "seed": (5, "seed", 5),
    "fixed": ({"lr": 0.1}, "fixed", {"lr": 0.1}),
    "no_cache": (True, "cache", None),
}
"""Option by option: what is typed, and where the record has which value."""

BESIDE = {"space", "repeat", "retry_failed"}
"""What is kept in another way than by a value of the record: a file, and trials to run."""


def test_every_option_has_its_place_in_the_table_of_what_a_resume_may_change() -> None:
    assert set(ON_RESUME) == {field.name for field in fields(Options)}
    kept = {name for name, rule in ON_RESUME.items() if rule.on_resume != "now"}
    assert kept == GIVEN.keys() | BESIDE, "add the new option here, so that it is tested"


@pytest.mark.parametrize("name", GIVEN)
def test_option_of_a_first_start_is_kept(name: str) -> None:
    given, field, value = GIVEN[name]
    assert getattr(first(**{name: given}), field) == value


@pytest.mark.parametrize("name", GIVEN)
def test_option_of_a_resume_is_kept_or_refused(name: str) -> None:
    given, field, value = GIVEN[name]
    before = first()
    if ON_RESUME[name].on_resume == "same":
        with pytest.raises(SearchError, match=f"--{name} was .* would not be comparable"):
            changed(before, options(**{name: given}))
        assert changed(replace(before, **{field: value}), options(**{name: given}))
    else:
        assert changed(before, options(**{name: given})) == replace(before, **{field: value})


def test_resume_without_an_option_changes_nothing() -> None:
    before = first(**{name: given for name, (given, _, _) in GIVEN.items() if name != "no_cache"})
    assert changed(before, options()) == before


@pytest.mark.parametrize("now", [0.3, float("nan")])
def test_resume_may_not_set_what_decides_which_images_judge(now: float) -> None:
    before = first(fixed={"val_fraction": 0.2})
    assert changed(before, options(fixed={"val_fraction": 0.2})) == before
    with pytest.raises(SearchError, match=r"--set val_fraction was 0\.2, now it is"):
        changed(before, options(fixed={"val_fraction": now}))


def test_search_that_was_judged_by_another_protocol_is_not_resumed() -> None:
    with pytest.raises(SearchError, match=f"protocol {PROTOCOL - 1}, and this version"):
        changed(replace(first(), protocol=PROTOCOL - 1), options())


def test_new_search_and_its_resume_are_planned_in_memory(memory: UPath) -> None:
    asked = options(space=memory / "asked.py", storage=memory / "runs", trials=5, seed=7)
    record, space, folder = plan(asked, MLFLOW)
    assert (record.num_trials, record.metrics, record.tracking_uri) == (5, ["score"], MLFLOW)
    assert folder == memory / "runs" / "asked"
    assert {sample.seed for sample in space.samples} == {7}
    space.save(folder, record.space_file)
    record.save(folder)
    with pytest.raises(SearchError, match="holds a search already: add --resume"):
        plan(replace(asked, name="asked"), MLFLOW)
    assert plan(asked, MLFLOW)[0].name == "asked-2"
    again = options(name="asked", storage=memory / "runs", resume=True)
    resumed, _, _ = plan(again, "sqlite:///elsewhere.db")
    assert resumed == record
    assert plan(replace(again, trials=8), MLFLOW)[0].num_trials == 8
