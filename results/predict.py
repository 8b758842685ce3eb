"""python -m results.predict: images -> CSV of superclass and subclass indices."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from upath import UPath

from results.load import RECORD_FILE, load_record, trial_folder, trials_frame
from results.model import answers
from results.repeats import best_trial
from trainable.checkpoint import write_atomically
from trainable.classifier import INFO_FILE, Classifier
from trainable.data import image_blocks
from trainable.errors import DataError, UserError
from trainable.pixels import check_whole

COLUMNS = ["image", "superclass_index", "subclass_index"]
MORE_COLUMNS = ["superclass", "subclass", "super_score", "sub_score"]
"""With --scores: the names of the answers, and how known each image looks, higher is more known."""


def main(argv: list[str] | None = None) -> int:
    """Predict every image and write one row each, in the numeric order of the names."""
    parser = argparse.ArgumentParser(prog="python -m results.predict", description=main.__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR|URI|models:/NAME/VERSION",
        help="a registered model, a search's folder (its best trial), a trial's or a refit's",
    )  # fmt: skip
    parser.add_argument("--images", required=True, metavar="DIR|ZIP")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv")
    parser.add_argument(
        "--scores", action="store_true", help="write names and novelty scores behind the indices"
    )
    parser.add_argument(
        "--skip-broken", action="store_true",
        help="predict the rest, and write which were skipped to FILE.skipped.csv",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="PATH", help="as given to the search")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow, for models:/ names")
    args = parser.parse_args(argv)
    try:
        if args.out.is_dir():
            raise DataError(f"--out {args.out}: this is a folder, a file name is needed")
        if not args.out.parent.is_dir():
            raise DataError(f"--out {args.out}: there is no folder {args.out.parent}")
        classifier = _load(args.model, args.weights, args.tracking_uri)
        broken: dict[str, str] = {}
        table = _predict(classifier, args.images, broken)
        if not args.skip_broken:
            remedy = "replace or remove each, or pass --skip-broken"
            check_whole({args.images: broken}, remedy)
        if not len(table):
            raise DataError(f"{args.images}: there must be images to predict, all are broken")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    columns = COLUMNS + (MORE_COLUMNS if args.scores else [])
    skipped = args.out.with_name(f"{args.out.stem}.skipped.csv")
    try:
        write_atomically(args.out, table[columns].to_csv(index=False).encode())
        if args.skip_broken:
            reasons = pd.DataFrame(broken.items(), columns=["image", "reason"])
            write_atomically(skipped, reasons.to_csv(index=False).encode())
    except OSError as error:
        print(f"error: --out {args.out}: {error.strerror}", file=sys.stderr)
        return 2
    novel = (table["superclass"] == "novel").sum(), (table["subclass"] == "novel").sum()
    print(
        f"wrote {args.out}: {len(table):,} images, {novel[0]:,} of a novel superclass, "
        f"{novel[1]:,} of a novel subclass"
    )
    if args.skip_broken:
        print(f"wrote {skipped}: {len(broken):,} broken images, which were skipped")
    return 0


def _predict(classifier: Classifier, images: str, broken: dict[str, str]) -> pd.DataFrame:
    """Return a row for each image, some of which are in memory at a time; see `image_blocks`."""
    tables = []
    for names, block in image_blocks(images, classifier.stored_size, broken):
        if names:
            table = answers(classifier, block)
            table.insert(0, "image", names)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


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
