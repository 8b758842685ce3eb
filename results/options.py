"""The options that every command takes, with one meaning and one help."""

import os
from typing import Any

from upath import UPath

from trainable.errors import UserError
from trainable.urls import ambiguous, hidden, without_file_scheme


def place(text: str) -> UPath:
    """Return a folder or file that was typed as a path or a URI: file:///PATH is the path."""
    return UPath(without_file_scheme(text))


def add_stores(add: Any) -> None:
    """Add --storage, --study and --tracking-uri to a command line.

    Args:
        add: `add_argument` of a parser or a group.
    """
    add("--storage", type=place, metavar="DIR|URI", help="where searches are (default: runs)")
    add("--study", metavar="URL",
        help="its study's database (default: as before, at first study.db beside it)")  # fmt: skip
    add("--tracking-uri", metavar="URI",
        help="MLflow (default: the search's, at first MLFLOW_TRACKING_URI or sqlite:///mlflow.db)",
    )  # fmt: skip


def add_experiment(add: Any) -> None:
    """Add --experiment to the command line of what logs to MLflow."""
    add("--experiment", metavar="NAME",
        help="of MLflow (default: the search's, at first MLFLOW_EXPERIMENT_NAME or noveltune)",
    )  # fmt: skip


def check_stores(storage: UPath | None, study: str | None, tracking_uri: str | None) -> None:
    """Refuse what would show a password, MLFLOW_TRACKING_URI included, and no URL of a database.

    Raises:
        UserError: A password in --storage, or one whose end is not clear; or --study is no URL.
    """
    if storage is not None and hidden(str(storage)) != str(storage):
        raise UserError(
            f"--storage {storage}: it is shown and sent to every node, so it may hold no password: "
            "pass that in the environment, for s3:// as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    shown = {"--study": study, "--tracking-uri": tracking_uri}
    if tracking_uri is None:
        shown["MLFLOW_TRACKING_URI"] = os.environ.get("MLFLOW_TRACKING_URI")
    for flag, url in shown.items():
        if url is not None and ambiguous(url):
            raise UserError(
                f"{flag}: it is not clear where the password ends; in a user name or a password, "
                "@ is written %40, / %2F, : %3A, and a space %20"
            )
    if study is not None:
        from sqlalchemy import make_url  # late, as few commands need it
        from sqlalchemy.exc import ArgumentError

        try:
            make_url(study)
        except (ArgumentError, ValueError) as error:
            raise UserError(
                f"--study {hidden(study)}: it is no URL of a database, like sqlite:///study.db or "
                "postgresql://USER@HOST/DATABASE"
            ) from error
