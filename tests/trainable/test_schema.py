"""Stored things of other versions: an older one becomes today's, a newer one is refused."""

import pytest

from trainable.schema import CONFIG_STEPS, SCHEMA, SchemaError, schema_of, upgraded


def rename_a(values: dict[str, int]) -> dict[str, int]:
    return {"b" if key == "a" else key: value for key, value in values.items()}


def retire_c(values: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in values.items() if key != "c"}


def test_older_values_go_through_every_step_since_and_are_left_as_they_were() -> None:
    stored = {"a": 1, "c": 2, "d": 3}
    assert upgraded(stored, 1, [rename_a, retire_c]) == {"b": 1, "d": 3}
    assert upgraded(stored, 2, [rename_a, retire_c]) == {"a": 1, "d": 3}
    assert upgraded(stored, 3, [rename_a, retire_c]) == stored == {"a": 1, "c": 2, "d": 3}


def test_what_has_no_number_is_of_version_0_1() -> None:
    assert schema_of({"version": "0.1.0"}, "it") == 1
    assert schema_of({"schema": SCHEMA}, "it") == SCHEMA


def test_newer_schema_is_refused_whatever_else_is_there() -> None:
    with pytest.raises(SchemaError, match=rf"^it was .* in schema {SCHEMA + 1}, and noveltune"):
        schema_of({"schema": SCHEMA + 1}, "it")


def test_every_kind_has_a_step_for_every_schema() -> None:
    from results.record import _STEPS as RECORD_STEPS
    from results.trial import TRIAL_STEPS
    from search.retrain import ASKED_STEPS
    from trainable.classifier import _INFO_STEPS as INFO_STEPS

    for steps in (CONFIG_STEPS, TRIAL_STEPS, RECORD_STEPS, INFO_STEPS, ASKED_STEPS):
        assert len(steps) == SCHEMA - 1
