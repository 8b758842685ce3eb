"""A refitted classifier as a registered model of MLflow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, Schema, TensorSpec
from upath import UPath

from results import model as pyfunc
from results.mlflow_store import connect, experiment_id, explained
from results.record import SearchRecord
from search.tracking import local_copies
from trainable.classifier import (
    INFO_FILE,
    MODEL_FILE,
)
from trainable.config import TrialConfig


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
                self._client.create_registered_model(self._record.name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise

    def register(
        self, trial: int, config: TrialConfig, target: UPath, example_NHWC: torch.Tensor
    ) -> str:
        """Log the refitted classifier as a pyfunc model; return its version.

        Args:
            trial: Number of the one that was refitted.
            config: Its configuration.
            target: Folder of the classifier.
            example_NHWC: An image, uint8.

        Raises:
            TrackingError: It could not be registered.
        """
        name = self._record.name
        tags = {"search": name, "search_id": self._record.id, "level": "refit"}
        with explained(self._uri), _logging_to(self._uri):
            # Not by start_run, which would go on with the run that MLFLOW_RUN_ID names.
            made = self._client.create_run(self._experiment_id, tags=tags, run_name=f"{name}-refit")
            with (
                mlflow.start_run(made.info.run_id) as run,
                local_copies([target / name for name in (MODEL_FILE, INFO_FILE)]) as files,
            ):
                mlflow.log_params({"trial": trial, **config.to_dict()})
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
                    input_example=example_NHWC.numpy(),
                )
            version = self._client.create_model_version(
                name, logged.model_uri, run.info.run_id, model_id=logged.model_id
            )
        return str(version.version)


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
