"""The form of what is stored: a newer one is refused, an older one is upgraded in memory."""

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from trainable.errors import UserError

SCHEMA = 2
"""Of `search.json`, of a study's attributes, of `model.json` and of `refit.json`.

1: version 0.1, which wrote no number.
2: version 0.2. Configurations say what is left out (`left_out`); a search's record says under which
protocol its trials were judged, what its space file said, and the experiment it is shown in.
"""

Step = Callable[[dict[str, Any]], dict[str, Any]]
"""Brings stored values from one schema to the next; leaves alone what it does not know."""


class SchemaError(UserError):
    """Something stored by a later version."""


def version() -> str:
    """Return noveltune's version; a registered model runs where it is not installed."""
    try:
        return metadata.version("noveltune")
    except metadata.PackageNotFoundError:
        return "that is not installed"


def stamp() -> dict[str, Any]:
    """Return what is stored with everything, for `schema_of` to find."""
    return {"schema": SCHEMA, "version": version()}


def schema_of(values: Mapping[str, Any], what: str) -> int:
    """Return the schema that `values` were stored in.

    Args:
        values: As read; without a number they are of version 0.1.
        what: They are, for messages.

    Raises:
        SchemaError: A newer one than this version reads.
        ValueError: No such number.
    """
    schema = values.get("schema", 1)
    if type(schema) is not int or schema < 1:
        raise ValueError(f"`schema` must be a whole number from 1, but is {schema!r}")
    if schema > SCHEMA:
        raise SchemaError(
            f"{what} was written by noveltune {values.get('version', 'of a later version')} in "
            f"schema {schema}, and noveltune {version()} here reads up to schema {SCHEMA}: "
            "use that version or a later one. Nothing was changed"
        )
    return schema


def upgraded(values: Mapping[str, Any], schema: int, steps: Sequence[Step]) -> dict[str, Any]:
    """Return a copy of `values`, stored in `schema`, as this version stores them.

    Args:
        values: A JSON object.
        schema: From `schema_of`.
        steps: The first is from schema 1 to 2, and so on up to `SCHEMA`.
    """
    result = dict(values)
    for step in steps[schema - 1 :]:
        result = step(result)
    return result


def _config_to_2(values: dict[str, Any]) -> dict[str, Any]:
    return {"left_out": "none"} | values  # version 0.1 left no superclass out


CONFIG_STEPS: tuple[Step, ...] = (_config_to_2,)
"""Of a whole configuration, as `TrialConfig.to_dict` gives it."""
