"""A refitted classifier as a registered model of MLflow."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, Schema, TensorSpec
from upath import UPath

from results import model as pyfunc
from results.mlflow_store import connect, experiment_id, explained, local_copies
from results.naming import acting_together, described
from results.promise import intervals_of, range_text
from results.record import SearchRecord
from search.champion import CHAMPION, Verdict, champion_line, verdict
from search.standing import DESCRIPTION
from search.tracking import dataset_input, source_tags
from trainable.classifier import (
    INFO_FILE,
    MODEL_FILE,
    read_info,
)
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.novelty.metrics import MAIN, METRICS
from trainable.novelty.scores.sums import plain
from trainable.schema import version as noveltune_version

_MAX_TAG = 5000
"""Characters that every server takes in a tag of a version."""
_FIRST = Verdict(True, "the first")


class Registration:
    """Where the model is registered, under the search's name."""

    def __init__(self, record: SearchRecord, *, is_new: bool = False) -> None:
        """Ask what can be asked in an instant.

        Args:
            record: Of the search.
            is_new: Make the database if there is none: it is not where the search was shown.

        Raises:
            TrackingError: No model could be registered there.
        """
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._record, self._uri = record, record.tracking_uri
        self._client = connect(self._uri, is_read=not is_new)
        with explained(self._uri):
            self._client.search_registered_models(max_results=1)
            self._experiment_id = experiment_id(
                self._client, record.experiment, record.experiment_id
            )

    def prepare(self) -> None:
        """Have the model's name there before hours of training, not after them.

        Raises:
            TrackingError: It is refused.
        """
        with explained(self._uri):
            try:
                self._client.create_registered_model(
                    self._record.name,
                    description=f"Says superclass, subclass, or novel. `{CHAMPION}` is the best "
                    "version of those that were judged alike; a version's tags say how.",
                )
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise

    def register(self, trial: int, config: TrialConfig, target: UPath, data: Data) -> str:
        """Log the refitted classifier as a pyfunc model; return its version.

        Args:
            trial: Number of the one that was refitted.
            config: Its configuration.
            target: Folder of the classifier.
            data: That it was trained on.

        Raises:
            TrackingError: It could not be registered.
        """
        name = self._record.name
        tags = {"search": name, "search_id": self._record.id, "level": "refit"}
        info = read_info(target)
        said = _description(self._record, trial, config, info)
        with explained(self._uri), _logging_to(self._uri):
            # Not by start_run, which would go on with the run that MLFLOW_RUN_ID names.
            tags |= source_tags("search.refit") | {DESCRIPTION: said}
            made = self._client.create_run(self._experiment_id, tags=tags, run_name=f"{name}-refit")
            with (
                mlflow.start_run(made.info.run_id) as run,
                local_copies([target / name for name in (MODEL_FILE, INFO_FILE)]) as files,
            ):
                mlflow.log_params({"trial": trial, **acting_together(config)})
                mlflow.log_metrics(
                    {f"promised/{key}": info["promise"][key] for key in METRICS
                     if key in info["promise"]}
                )  # fmt: skip
                self._client.log_inputs(run.info.run_id, [dataset_input(data)])
                logged = mlflow.pyfunc.log_model(
                    name="classifier",
                    loader_module=pyfunc.__name__,
                    data_path=str(files[0].parent),
                    code_paths=pyfunc.CODE_PATHS,
                    pip_requirements=pyfunc.requirements(),
                    signature=ModelSignature(
                        inputs=Schema([TensorSpec(pyfunc.INPUT_DTYPE, pyfunc.INPUT_SHAPE)]),
                        outputs=Schema(
                            [ColSpec(kind, key) for key, kind in pyfunc.OUTPUTS.items()]
                        ),
                    ),
                    input_example=data.images[:1].numpy(),
                )
            version = self._client.create_model_version(
                name, logged.model_uri, run.info.run_id, model_id=logged.model_id,
                tags=_tags(self._record, trial, info, data.fingerprint),
                description=said,
            )  # fmt: skip
        return str(version.version)

    def crown(self, version: str) -> str:
        """Give a new version the alias `champion` if it deserves it; return a line that says so.

        Raises:
            TrackingError: It could not be asked, or told.
        """
        name = self._record.name
        with explained(self._uri):
            now = self._client.get_registered_model(name).aliases.get(CHAMPION)
            found = _FIRST
            if now is not None:
                new, old = (self._client.get_model_version(name, each) for each in (version, now))
                found = verdict(new.tags, old.tags)
            if found.moves:
                self._client.set_registered_model_alias(name, CHAMPION, version)
        return champion_line(name, version, now, found)


def _tags(
    record: SearchRecord, trial: int, info: Mapping[str, Any], fingerprint: str
) -> dict[str, str]:
    """Return what a version says of itself: who it is, what it knows, how it was judged."""
    rule, promise = info["rule"], info["promise"]
    metric = record.metrics[0] if len(record.metrics) == 1 else "score"
    rates = {name: repr(promise[name]) for name in (*MAIN, metric) if name in promise}
    tags = {
        "search": record.name, "search_id": record.id, "trial": str(trial),
        "noveltune": noveltune_version(), "protocol": str(record.protocol),
        "data_fingerprint": fingerprint, "metric": metric, **rates,
        "super_novelty_score": plain(rule["super_score"]),
        "sub_novelty_score": plain(rule["sub_score"]),
        "tau_super": repr(rule["tau_super"]), "tau_sub": json.dumps(rule["tau_sub"]),
        "superclasses": json.dumps(info["superclasses"]),
        "subclasses": json.dumps(info["subclasses"]),
    }  # fmt: skip
    is_long = {key for key, value in tags.items() if len(value) > _MAX_TAG}
    return tags | {key: f"{len(json.loads(tags[key])):,}, see {INFO_FILE}" for key in is_long}


def _description(
    record: SearchRecord, trial: int, config: TrialConfig, info: Mapping[str, Any]
) -> str:
    """Return what MLflow's page of a version says, in Markdown."""
    known = f"{len(info['superclasses'])} superclasses and {len(info['subclasses'])} subclasses"
    promise = info["promise"]
    ends = intervals_of(promise)
    rows = [  # MLflow's pages set columns without room between them
        f"| {name}&nbsp; | {promise[name]:.3f}&nbsp; | "
        f"{range_text(ends[name]) if name in ends else ''} |"
        for name in MAIN
        if name in promise
    ]
    table = ["| rate | promised | 95% |", "|---|---|---|", *rows] if rows else []
    return "\n".join([
        f"Knows {known}, and says novel of others. Trial {trial} of the search `{record.name}`, "
        f"trained again on every class: {described(config)}.", "", *table, "",
        f"    mlflow models serve -m models:/{record.name}@{CHAMPION} --env-manager local",
    ])  # fmt: skip


@contextmanager
def _logging_to(uri: str) -> Iterator[None]:
    """Have MLflow's functions log there, and elsewhere again afterwards.

    What they log to is in the environment, too: commands that the caller starts would inherit it.
    """
    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    before = mlflow.get_tracking_uri() if is_set else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
