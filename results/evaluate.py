"""python -m results.evaluate: labelled images -> what the model is worth, beside its promise."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from upath import UPath

from results.evaluation import Evaluation, evaluate, frequent, held_out
from results.labels import Labels, matched, read_labels
from results.options import place
from results.predict import (
    REMEDY,
    add_model,
    add_skip_broken,
    is_registered,
    load_model,
    model_folder,
    write_skipped,
)
from results.promise import comparable, intervals_of, range_text, rates_text
from results.terminal import counted, plain_console
from trainable.checkpoint import write_atomically
from trainable.classifier import Classifier
from trainable.data.dataset import image_blocks
from trainable.data.pixels import check_whole
from trainable.errors import DataError, Parser, UserError, typed
from trainable.memory import keep_freed_memory
from trainable.novelty.intervals import interval_of
from trainable.novelty.metrics import MAIN, METRICS
from trainable.novelty.rule import Response, joined

SHOWN = 8
"""Confusions and wrong answers on the terminal; the files hold all of them."""


def main(argv: list[str] | None = None) -> int:
    """Compare a model's answers with labels: metrics with 95% intervals, confusions, errors."""
    parser = Parser(prog=typed("results.evaluate"), description=main.__doc__)
    add_model(parser.add_argument)
    parser.add_argument("--images", required=True, metavar="DIR|ZIP")
    parser.add_argument(
        "--labels", required=True, type=Path, metavar="FILE.csv",
        help="image, superclass_index, subclass_index: indices or names, the index behind the last "
        "or the word novel for novel, the subclass may be empty; true_class tells novel ones apart",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=place, metavar="DIR", help="(default: evaluation, in the model's folder)"
    )
    add_skip_broken(parser.add_argument, "skipped.csv")
    parser.add_argument("--json", action="store_true", help="end with all figures as one line")
    args = parser.parse_args(argv)
    keep_freed_memory()
    console = plain_console()
    try:
        out = args.out or _beside(args.model, args.storage)
        classifier = load_model(args)
        broken: dict[str, str] | None = {} if args.skip_broken else None
        console.print("answering the images")
        found = evaluate_images(classifier, args.images, args.labels, console.print, broken)
        promise, told = comparable(promise_of(classifier.info), found.counts)
        files = write(out, found, promise)
        from results.report.evaluated import Asked, write_evaluation_page  # late: matplotlib

        asked = Asked(
            model=args.model, images=args.images, labels=str(args.labels),
            stored_size=classifier.stored_size, told=told,
        )  # fmt: skip
        page = write_evaluation_page(out, asked, found, compared(found, promise))
        skipped = None if broken is None else write_skipped(out / "skipped.csv", broken)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out {out}: {error.strerror or error}", file=sys.stderr)
        return 2
    print_tables(console, found, promise)
    if told:
        console.print(f"\n{told}", markup=False)
    console.print(f"wrote {page[0]}: what is beside it are PNG, SVG and CSV of all it shows")
    console.print(f"wrote {out}: {', '.join(file.name for file in files)}")
    if skipped:
        console.print(skipped)
    if args.json:
        print(json.dumps(summary(found, promise) | {"out": str(out)}), flush=True)
    return 0


def _beside(model: str, storage: UPath | None) -> UPath:
    if is_registered(model):
        return UPath("evaluation")
    return model_folder(model, storage) / "evaluation"


def evaluate_images(
    classifier: Classifier,
    images: str,
    labels: Path,
    note: Callable[[str], None],
    broken: dict[str, str] | None = None,
) -> Evaluation:
    """Return what the labels in a file say of the answers to the images in a folder or zip.

    Broken images are skipped, and their names get the reason in `broken`.

    Raises:
        DataError: Labels or images that cannot be used; without `broken`, also broken images.
    """
    known = labels_for(classifier, labels, note)
    labelled, reasons = set(known.images), dict[str, str]()
    names: list[str] = []
    parts: list[Response] = []
    for of_block, pixels in image_blocks(images, classifier.stored_size, reasons, note):
        names += of_block
        places = [place for place, name in enumerate(of_block) if name in labelled]
        if places:
            parts.append(classifier.response(pixels[places]))
    if broken is None:
        check_whole({images: reasons}, REMEDY)
    else:
        broken |= reasons
    judged = matched(known, names, note)
    return evaluate(joined(parts), classifier, known.of(judged))


def labels_for(classifier: Classifier, file: Path, note: Callable[[str], None]) -> Labels:
    """Return the labels in `file` in the classifier's classes; see `read_labels`."""
    outputs = zip(
        classifier.info["subclass_of_output"], classifier.info["super_of_output"], strict=False
    )
    return read_labels(
        file, classifier.superclasses[:-1], classifier.subclasses[:-1], dict(outputs), note
    )


def promise_of(info: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that the search promised for a model, with intervals; or nothing."""
    promise = info.get("promise") or info.get("metrics") or {}
    return dict(promise) if "score" in promise else {}


def compared(found: Evaluation, promise: Mapping[str, float]) -> pd.DataFrame:
    """Return one row per metric: found, low and high, and what was promised, where it was."""
    rows = []
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        promised_low, promised_high = interval_of(promise, name) or (None, None)
        rows.append(
            {
                "metric": name, "found": value, "low": low, "high": high,
                "promised": promise.get(name), "promised_low": promised_low,
                "promised_high": promised_high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def summary(found: Evaluation, promise: Mapping[str, float]) -> dict[str, Any]:
    """Return what --json prints and `evaluation.json` holds."""
    return {
        "counts": found.counts,
        "metrics": found.metrics,
        "intervals": {name: list(ends) for name, ends in found.intervals.items()},
        "promised": {name: promise[name] for name in METRICS if name in promise},
        "promised_intervals": {
            name: list(ends) for name in METRICS if (ends := interval_of(promise, name))
        },
        "wrong": len(found.wrong),
    }


def write(out: UPath, found: Evaluation, promise: Mapping[str, float]) -> list[UPath]:
    """Write all of it into the folder `out`, which is made; return the files.

    Raises:
        DataError: `out` is a file.
    """
    if out.is_file():
        raise DataError(f"--out {out}: this is a file, a folder is needed")
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "metrics.csv": compared(found, promise).to_csv(index=False),
        "confusion_superclass.csv": found.confusion["superclass"].to_csv(),
        "confusion_subclass.csv": found.confusion["subclass"].to_csv(),
        "wrong.csv": found.wrong.to_csv(index=False),
        "evaluation.json": json.dumps(summary(found, promise), indent=2),
    }
    for name, content in tables.items():
        write_atomically(out / name, content.encode())
    return [out / name for name in tables]


def print_tables(console: Console, found: Evaluation, promise: Mapping[str, float]) -> None:
    """Print metrics beside the promise, the most frequent confusions, the surest mistakes."""
    counts = found.counts
    console.print(
        f"\n{counted(counts['images'], 'image')}: {counts['seen']:,} of seen subclasses, "
        f"{counts['novel_subclass']:,} of novel subclasses, {counts['novel_superclass']:,} of "
        f"novel superclasses" + (f", {counts['without_subclass']:,} without a subclass"
        if counts["without_subclass"] else "")
    )  # fmt: skip
    if counts["novel_of_unknown_class"]:
        console.print(
            f"Which class they show is not known of {counts['novel_of_unknown_class']:,} novel "
            "images (column true_class), so intervals of what is novel are too narrow."
        )
    if not promise:
        console.print("This model carries no promise of a search.")
    table = Table(box=None, padding=(0, 1))
    table.add_column("metric", no_wrap=True)
    for column in ("promised", "95%", "found", "95%"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in compared(found, promise).itertuples():
        table.add_row(
            str(row.metric),
            _number(row.promised), _range((row.promised_low, row.promised_high)),
            _number(row.found), _range((row.low, row.high)),
            style="bold" if row.metric in MAIN else None,
        )  # fmt: skip
    console.print(table, soft_wrap=False)
    for level, confusion in found.confusion.items():
        most = frequent(confusion, SHOWN, held_out(found.judged))
        _print_rows(
            console, f"Most frequent confusions, {level}", most,
            {"share": "{:.2f}", "images": "{:,}"},
        )  # fmt: skip
    surest = found.wrong.head(SHOWN)[["image", "truth", "answer", "margin"]]
    _print_rows(
        console,
        "Most surely wrong, by standard deviations beyond the threshold",
        surest,
        {"margin": "{:.1f}"},
    )


def promise_lines(found: Evaluation, promise: Mapping[str, float]) -> list[str]:
    """Return two lines: the main rates as promised, and as found."""

    return [
        f"promised: {rates_text(promise, intervals_of(promise))}",
        f"found: {rates_text(found.metrics, found.intervals)}",
    ]


def _number(value: Any) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.3f}"


def _range(ends: tuple[Any, Any] | None) -> str:
    return "" if ends is None or pd.isna(ends[0]) else range_text(ends)


def _print_rows(console: Console, title: str, rows: pd.DataFrame, formats: dict[str, str]) -> None:
    table = Table(box=None, padding=(0, 1))
    for column in rows:
        justify: Any = "right" if column in formats else "left"
        table.add_column(str(column), justify=justify, overflow="fold")
    for _, row in rows.iterrows():
        table.add_row(*(formats.get(str(name), "{}").format(value) for name, value in row.items()))
    console.print(f"\n{title}" if len(rows) else f"\n{title}: none")
    if len(rows):
        console.print(table, soft_wrap=False)


if __name__ == "__main__":
    sys.exit(main())
