"""python -m results.predict: images -> CSV of superclass and subclass indices."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from upath import UPath

from results.history import trials_frame
from results.mlflow_store import connect, default_uri, explained
from results.model import answers
from results.options import add_stores, check_stores, place
from results.ranking import best_trial
from results.record import RECORD_FILE, absolute_url, load_record, run_folder, trial_folder
from results.terminal import counted
from trainable.checkpoint import write_atomically
from trainable.classifier import INFO_FILE, Classifier
from trainable.data.dataset import image_blocks
from trainable.data.pixels import check_whole
from trainable.errors import DataError, Parser, UserError, reason_of, typed
from trainable.memory import keep_freed_memory

COLUMNS = ["image", "superclass_index", "subclass_index"]
REMEDY = "replace or remove each, or pass --skip-broken"
MORE_COLUMNS = ["superclass", "subclass", "super_score", "sub_score"]
"""With --scores: the names of the answers, and how known each image looks, higher is more known."""


def main(argv: list[str] | None = None) -> int:
    """Predict every image and write one row each, in the numeric order of the names."""
    parser = Parser(prog=typed("results.predict"), description=main.__doc__)
    add_model(parser.add_argument)
    parser.add_argument("--images", required=True, metavar="DIR|ZIP")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv")
    parser.add_argument(
        "--scores", action="store_true", help="write names and novelty scores behind the indices"
    )
    add_skip_broken(parser.add_argument, "FILE.skipped.csv")
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        if args.out.is_dir():
            raise DataError(f"--out {args.out}: this is a folder, a file name is needed")
        if not args.out.parent.is_dir():
            raise DataError(f"--out {args.out}: there is no folder {args.out.parent}")
        classifier = load_model(args)
        broken: dict[str, str] = {}
        print("answering the images", flush=True)
        table = predict_images(classifier, args.images, broken)
        if not args.skip_broken:
            check_whole({args.images: broken}, REMEDY)
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
            print(write_skipped(skipped, broken))
    except OSError as error:
        print(f"error: --out {args.out}: {error.strerror}", file=sys.stderr)
        return 2
    novel = (table["superclass"] == "novel").sum(), (table["subclass"] == "novel").sum()
    print(
        f"wrote {args.out}: {counted(len(table), 'image')}, {novel[0]:,} of a novel superclass, "
        f"{novel[1]:,} of a novel subclass"
    )
    return 0


def add_skip_broken(add: Any, file: str) -> None:
    """Add --skip-broken, which writes `file`, to a command line by its `add_argument`."""
    add("--skip-broken", action="store_true",
        help=f"answer the rest, and write which were skipped to {file}")  # fmt: skip


def write_skipped(file: UPath | Path, broken: Mapping[str, str]) -> str:
    """Write the reason why each broken image was skipped; return a line that says so."""
    reasons = pd.DataFrame(broken.items(), columns=["image", "reason"])
    write_atomically(file, reasons.to_csv(index=False).encode())
    return f"wrote {file}: {counted(len(broken), 'broken image')} skipped"


def predict_images(classifier: Classifier, images: str, broken: dict[str, str]) -> pd.DataFrame:
    """Return a row for each image, some of which are in memory at a time; see `image_blocks`."""
    tables = []
    for names, block in image_blocks(images, classifier.stored_size, broken):
        if names:
            table = answers(classifier, block)
            table.insert(0, "image", names)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def add_model(add: Any) -> None:
    """Add --model, and what finds it, to a command line by its `add_argument`."""
    add(
        "--model", required=True, metavar="NAME|DIR|URI|models:/NAME/VERSION",
        help="a registered model; a search (its best trial); the folder of one, a trial or a refit",
    )  # fmt: skip
    add("--weights", type=Path, metavar="PATH", help="as given to the search")
    add_stores(add)


def load_model(args: argparse.Namespace) -> Classifier:
    """Return the classifier that the arguments of `add_model` name.

    Raises:
        UserError: There is none.
    """
    check_stores(args.storage, args.study, args.tracking_uri)
    if is_registered(args.model):
        uri = absolute_url(args.tracking_uri or default_uri())
        return _load_registered(args.model, args.weights, uri)
    return _load(args.model, args.weights, model_folder(args.model, args.storage), args.study)


def is_registered(model: str) -> bool:
    """Return whether MLflow has the model, not a folder."""
    return model.startswith(("models:/", "runs:/"))


def model_folder(model: str, storage: UPath | None) -> UPath:
    """Return the folder that a --model names: of that path, or of the search of that name.

    Raises:
        DataError: A URI of a kind that nothing here can read.
    """
    try:
        folder = place(model)
    except ValueError as error:
        raise DataError(f"--model {model}: {error}") from error
    if _is_name(model) and (storage is not None or not folder.exists()):
        named = run_folder(model, storage)
        return named if (named / RECORD_FILE).exists() or not folder.exists() else folder
    return folder


def _is_name(model: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*", model) is not None


def _load_registered(model: str, weights: Path | None, uri: str) -> Classifier:
    """Return the classifier that MLflow at `uri` has under a models:/ or runs:/ name.

    Raises:
        UserError: There is none, or no such MLflow.
    """
    client = connect(uri, is_read=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            local = Path(
                mlflow.artifacts.download_artifacts(
                    model, dst_path=scratch, tracking_uri=uri,
                    registry_uri=os.environ.get("MLFLOW_REGISTRY_URI", uri),
                )
            )  # fmt: skip
        except Exception as error:  # artifact stores raise types of their own
            with explained(uri):
                found = [each.name for each in client.search_registered_models(max_results=11)]
            more = " and more" if len(found) > 10 else ""
            names = f"it has {', '.join(found[:10])}{more}" if found else "it has no model"
            raise DataError(
                f"--model {model}: MLflow at {uri} does not give it ({reason_of(error)}); {names}. "
                "Pass another --model or --tracking-uri"
            ) from error
        info = next(local.rglob(INFO_FILE), None)
        if info is None:
            raise DataError(f"--model {model}: not a model that search.refit registered")
        return Classifier.load(UPath(info.parent), weights)


def _load(model: str, weights: Path | None, folder: UPath, study: str | None) -> Classifier:
    """Return the classifier in a folder: of a trial or a refit, or the best of a search.

    Raises:
        UserError: There is none.
    """
    if (folder / RECORD_FILE).exists() or (_is_name(model) and not folder.exists()):
        record = load_record(folder).reached(study, None)
        best = best_trial(trials_frame(folder, record), record.metrics)
        if best is None:
            raise DataError(f"--model {model}: no trial of this search is COMPLETE")
        weights = weights or (Path(record.weights) if record.weights else None)
        folder = trial_folder(folder, int(best["number"]))
    return Classifier.load(folder, weights)


if __name__ == "__main__":
    sys.exit(main())
