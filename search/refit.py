"""python -m search.refit: the best configuration, every class, as a registered model."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, Schema, TensorSpec
from rich.console import Console
from upath import UPath

from results import model as pyfunc
from results.evaluate import evaluate_images, promise_lines, write
from results.history import searched, trials_frame
from results.mlflow_store import TrackingError, connect, default_uri, experiment_id, explained
from results.options import add_experiment, add_stores, check_stores
from results.promise import comparable, intervals_of, promise_of_trials, rates_text
from results.ranking import best_repeated, best_row, ranking_metric, repeated
from results.record import SearchRecord, load_record, run_folder, trial_folder
from results.terminal import plain_console
from search.tracking import local_copies
from trainable.checkpoint import write_atomically
from trainable.classifier import (
    INFO_FILE,
    MODEL_FILE,
    Classifier,
    load_outputs,
    save_classifier,
)
from trainable.config import TrialConfig
from trainable.data.dataset import (
    TEST_CSV,
    Data,
    folder_for_images,
    load_data,
    same_data,
    synthetic_folder,
)
from trainable.data.splits import make_refit_pools
from trainable.errors import Parser, TrialError, UserError
from trainable.memory import keep_freed_memory
from trainable.novelty.rule import Rule, for_num_classes
from trainable.novelty.thresholds import choose_rule
from trainable.out_of_fold import Rejected, carried_over, pools_of_shares
from trainable.train import Metrics, train
from trainable.urls import public

ASKED_FILE = "refit.json"
"""What a refitted classifier was trained by; written when it is whole."""


class RefitError(UserError):
    """A search without a trial that could be refitted."""


def main(argv: list[str] | None = None) -> int:
    """Retrain a search's best configuration on every subclass and register it.

    Where configurations ran with several seeds, the best is the best mean.
    """
    parser = Parser(prog="python -m search.refit", description=main.__doc__)
    parser.add_argument("--name", required=True, help="of the search")
    add_stores(parser.add_argument)
    add_experiment(parser.add_argument)
    parser.add_argument("--trial", type=int, metavar="N", help="its number (default: the best)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    console = plain_console()
    try:
        check_stores(args.storage, args.study, args.tracking_uri)
        folder = run_folder(args.name, args.storage)
        record = load_record(folder)
        record = record.reached(args.study, args.tracking_uri, args.experiment)
        trials = trials_frame(folder, record)
        row = _chosen(trials, record, args.trial)
        console.print(f"refit of trial {row['number']:05d}: {row['config'].describe()}")
        if len(row["seeds"]) > 1:
            console.print(f"the best mean over {len(row['seeds'])} seeds; their median thresholds")
        numbers = sorted(row["seeds"], key=lambda number: number != row["number"])
        configs = dict(zip(trials["number"], trials["config"], strict=True))
        rules = [_rule(folder, number, configs[number]) for number in numbers]
        rule = common_rule([each for each, _ in rules])
        rejected = common_rejected(rules)
        registry = _Registry(record, is_new=args.tracking_uri is not None)
        with folder_for_images(Path(record.cache) if record.cache else None) as images:
            data = load_data(record.data, record.novel, images, note=console.print)
        _check_data(record, data, console)
        num_subclasses = load_outputs(trial_folder(folder, row["number"])).sub_logits.shape[1] - 1
        rule = for_num_classes(rule, num_subclasses, len(data.subclasses))
        registry.prepare()
        target = folder / "refit" / f"{row['number']:05d}"
        promise = promise_of_trials(trials[trials["number"].isin(numbers)])
        _refit_once(row, rule, rejected, record, data, target, promise, console)
        if record.data == "synthetic":
            _evaluate_built_in(record, target, promise, console)
        else:
            console.print(f"promised: {rates_text(promise, intervals_of(promise))}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrialError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    try:
        version = registry.register(row, target, data.images[:1])
    except TrackingError as error:
        print(
            f"failed: {target} is written and predicts, but is not registered: {error}; the same "
            "command then registers it without training again",
            file=sys.stderr,
        )
        return 1
    is_default = record.tracking_uri == default_uri()
    store = "" if is_default else f" --tracking-uri {shlex.quote(public(record.tracking_uri))}"
    console.print(
        f"wrote {target}\nregistered models:/{record.name}/{version}\nNext:\n"
        f"  python -m results.predict --model models:/{record.name}/{version} "
        f"--images IMAGES --out submission.csv{store}",
    )
    return 0


def _check_data(record: SearchRecord, data: Data, console: Console) -> None:
    """Refuse other data than the search's: its thresholds belong to those classes and images."""
    if same_data(record.data_fingerprint, data.fingerprint, console.print):
        return
    raise RefitError(
        f"{record.data} and {record.novel} are other data than the search had: their fingerprint "
        f"was {record.data_fingerprint}, now it is {data.fingerprint}, and the thresholds found "
        "belong to those. Bring them back (python -m search.run --resume "
        f"--name {record.name} --data PATH --novel PATH, if they have moved), or start a new search"
    )


def _chosen(trials: pd.DataFrame, record: SearchRecord, number: int | None) -> "pd.Series[Any]":
    """Return the trial to refit: its row in `trials`, and `seeds`, the numbers of its repeats.

    Where there are repeats and none is asked for, it is the original of the best mean, with the
    median over its seeds of the best epoch, rounded.
    """
    if number is None:
        best = best_repeated(repeated(trials), ranking_metric(record.metrics))
        if best is not None:
            seeds = best.by_seed
            epoch = round(median(seeds["best_epoch"].astype(float)))
            numbers = seeds["number"].tolist()
            return pd.Series({**best.original, "best_epoch": epoch, "seeds": numbers})
        row = best_row(searched(trials), record.metrics)
        if row is None:
            raise RefitError(f"{record.name}: no trial is COMPLETE, so there is nothing to refit")
        return pd.Series({**row, "seeds": [row["number"]]})
    rows = trials[(trials["number"] == number) & (trials["state"] == "COMPLETE")]
    if not len(rows):
        raise RefitError(f"{record.name}: there is no COMPLETE trial {number}")
    return pd.Series({**rows.iloc[0], "seeds": [number]})


def _rule(folder: UPath, number: int, config: TrialConfig) -> tuple[Rule, Rejected]:
    """Return a trial's rule, chosen on all of its validation images, and what it rejects there."""
    outputs = load_outputs(trial_folder(folder, number))
    rule = choose_rule(outputs, config)
    return rule, Rejected.by(rule, outputs)


def common_rejected(rules: Sequence[tuple[Rule, Rejected]]) -> Rejected:
    """Return the median shares that the rules with the scores of the first one reject."""
    scores = (rules[0][0].super_score, rules[0][0].sub_score)
    alike = [each for rule, each in rules if (rule.super_score, rule.sub_score) == scores]
    by_superclass = zip(*(each.sub for each in alike), strict=True)
    return Rejected(median(each.super for each in alike), tuple(map(median, by_superclass)))


def common_rule(rules: Sequence[Rule]) -> Rule:
    """Return the first rule, with the median thresholds of those that use the same scores.

    One seed's threshold is fitted to the few validation images that this seed drew, and a mean
    would follow the one seed whose threshold went astray.
    """
    first = rules[0]
    scores = (first.super_score, first.sub_score)
    alike = [rule for rule in rules if (rule.super_score, rule.sub_score) == scores]
    return replace(
        first,
        tau_super=median(rule.tau_super for rule in alike),
        tau_sub=tuple(median(taus) for taus in zip(*(rule.tau_sub for rule in alike), strict=True)),
    )


def _refit_once(
    row: "pd.Series[Any]",
    rule: Rule,
    rejected: Rejected,
    record: SearchRecord,
    data: Data,
    target: UPath,
    promise: dict[str, float],
    console: Console,
) -> None:
    """Train, unless `target` holds what would come of it: of a refit that could not register."""
    asked = {
        "config": row["config"].to_dict(), "best_epoch": int(row["best_epoch"]),
        "rule": asdict(rule), "data": data.fingerprint, "weights": record.weights,
        "cache": record.cache, "version": metadata.version("noveltune"),
    }  # fmt: skip
    content = json.dumps(asked, indent=2)
    file = target / ASKED_FILE
    if file.exists() and file.read_text() == content:
        console.print(f"{target} is trained already; to train it again, delete that folder")
        return
    if file.exists():
        file.unlink()
    _refit(row, rule, rejected, record, data, target, promise, console)
    write_atomically(file, content.encode())


def _refit(
    row: "pd.Series[Any]",
    rule: Rule,
    rejected: Rejected,
    record: SearchRecord,
    data: Data,
    target: UPath,
    promise: dict[str, float],
    console: Console,
) -> None:
    """Train on everything for as many epochs as were best; the answers go by `rule`, carried over.

    The learning-rate schedule is that of the trial, ended early where its best epoch was.
    """
    config = replace(
        row["config"], super_novelty_score=rule.super_score, sub_novelty_score=rule.sub_score
    )
    pools = make_refit_pools(data, config)
    best_epoch = int(row["best_epoch"])
    shares = pools_of_shares(data, config) if best_epoch else []
    if shares:
        console.print(
            f"thresholds: by {len(shares)} further heads for each frozen one, each trained without "
            "a share of the known images and asked about it"
        )

    def report(metrics: Metrics) -> None:
        if best_epoch == 0:
            return  # the heads as they were drawn
        console.print(
            f"epoch {metrics['epoch']:.0f}/{best_epoch}  train_loss {metrics['train_loss']:.3f}"
            f"  {metrics['epoch_s']:.1f} s"
        )

    result = train(
        config,
        data,
        report,
        pools=pools,
        cache=Path(record.cache) if record.cache else None,
        full_precision=record.cache is None,
        weights=Path(record.weights) if record.weights else None,
        stop_after=best_epoch,
        shares=shares,
        note=console.print,
    )
    rule = carried_over(rule, rejected, config, result.shares)
    save_classifier(
        target,
        config,
        data,
        pools,
        result.branches,
        result.metrics,
        rule,
        result.banks,
        self_contained=True,
        promise=promise,
    )


def _evaluate_built_in(
    record: SearchRecord, target: UPath, promise: dict[str, float], console: Console
) -> None:
    """Say in two lines what was promised and what the built-in data's own test images show; write
    the evaluation beside the model.
    """
    with folder_for_images(Path(record.cache) if record.cache else None) as cache:
        folder = synthetic_folder(cache)
        found = evaluate_images(
            Classifier.load(target), str(folder), folder / TEST_CSV, console.print
        )
    promise, told = comparable(promise, found.counts)
    write(target / "evaluation", found, promise)
    for line in (*promise_lines(found, promise), told):
        if line:
            console.print(line, markup=False)


class _Registry:
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

    def register(self, row: "pd.Series[Any]", target: UPath, example_NHWC: torch.Tensor) -> str:
        """Log the refitted classifier as a pyfunc model; return its version.

        Raises:
            TrackingError: It could not be registered.
        """
        name = self._record.name
        tags = {"search": name, "search_id": self._record.id, "level": "refit"}
        with explained(self._uri):
            mlflow.set_tracking_uri(self._uri)
            # Not by start_run, which would go on with the run that MLFLOW_RUN_ID names.
            made = self._client.create_run(self._experiment_id, tags=tags, run_name=f"{name}-refit")
            with (
                mlflow.start_run(made.info.run_id) as run,
                local_copies([target / name for name in (MODEL_FILE, INFO_FILE)]) as files,
            ):
                mlflow.log_params({"trial": row["number"], **row["config"].to_dict()})
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


if __name__ == "__main__":
    sys.exit(main())
