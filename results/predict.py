"""python -m results.predict: images -> CSV of superclass and subclass indices."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.exceptions import MlflowException
from upath import UPath

from results.load import RECORD_FILE, load_record, trial_folder, trials_frame
from results.model import answers
from results.repeats import best_trial
from trainable.checkpoint import write_atomically
from trainable.classifier import INFO_FILE, Classifier
from trainable.data import load_images
from trainable.errors import DataError, UserError

COLUMNS = ["image", "superclass_index", "subclass_index"]


def main(argv: list[str] | None = None) -> int:
    """Predict every image and write one row each, in the numeric order of the names."""
    parser = argparse.ArgumentParser(prog="python -m results.predict", description=main.__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR|URI|models:/NAME/VERSION",
        help="a registered model, a search's folder (its best trial), a trial's or a refit's",
    )  # fmt: skip
    parser.add_argument("--images", required=True, metavar="DIR|ZIP")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="as given to the search")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow, for models:/ names")
    args = parser.parse_args(argv)
    try:
        if args.out.is_dir():
            raise DataError(f"--out {args.out}: this is a folder, a file name is needed")
        if not args.out.parent.is_dir():
            raise DataError(f"--out {args.out}: there is no folder {args.out.parent}")
        classifier = _load(args.model, args.weights, args.tracking_uri)
        names, images = load_images(args.images, classifier.stored_size)
        table = answers(classifier, images)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table.insert(0, "image", names)
    try:
        write_atomically(args.out, table[COLUMNS].to_csv(index=False).encode())
    except OSError as error:
        print(f"error: --out {args.out}: {error.strerror}", file=sys.stderr)
        return 2
    novel = (table["superclass"] == "novel").sum(), (table["subclass"] == "novel").sum()
    print(
        f"wrote {args.out}: {len(table):,} images, {novel[0]:,} of a novel superclass, "
        f"{novel[1]:,} of a novel subclass"
    )
    return 0


def _load(model: str, weights: Path | None, tracking_uri: str | None) -> Classifier:
    """Return the classifier that `model` names.

    Raises:
        UserError: There is none.
    """
    if model.startswith(("models:/", "runs:/")):
        if tracking_uri:
            mlflow.set_tracking_uri(tracking_uri)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                local = Path(mlflow.artifacts.download_artifacts(model, dst_path=scratch))
            except (MlflowException, OSError) as error:
                raise DataError(f"--model {model}: {error}") from error
            info = next(local.rglob(INFO_FILE), None)
            if info is None:
                raise DataError(f"--model {model}: not a model that search.refit registered")
            return Classifier.load(UPath(info.parent), weights)
    try:
        folder = UPath(model)
    except ValueError as error:
        raise DataError(f"--model {model}: {error}") from error
    if (folder / RECORD_FILE).exists():
        record = load_record(folder)
        best = best_trial(trials_frame(folder, record), record.metrics)
        if best is None:
            raise DataError(f"--model {model}: no trial of this search is COMPLETE")
        weights = weights or (Path(record.weights) if record.weights else None)
        folder = trial_folder(folder, int(best["number"]))
    return Classifier.load(folder, weights)


if __name__ == "__main__":
    sys.exit(main())
