"""python -m search.refit: the best configuration, every class, as a registered model."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from rich.console import Console
from upath import UPath

from results import model as pyfunc
from results.load import (
    SearchRecord,
    best_row,
    load_record,
    ranking_metric,
    run_folder,
    searched,
    trial_folder,
    trials_frame,
)
from results.options import add_stores, check_stores
from results.repeats import best_repeated, repeated
from search.tracking import EXPERIMENT, local_copies
from trainable.calibration import choose_rule
from trainable.classifier import INFO_FILE, MODEL_FILE, load_outputs, save_classifier
from trainable.config import TrialConfig
from trainable.data import Data, folder_for_images, load_data
from trainable.errors import Parser, TrialError, UserError
from trainable.memory import keep_freed_memory
from trainable.novelty import Rule
from trainable.splits import make_refit_pools
from trainable.train import Metrics, train
from trainable.urls import hidden, public


class RefitError(UserError):
    """A search without a trial that could be refitted."""


def main(argv: list[str] | None = None) -> int:
    """Retrain a search's best configuration on every subclass and register it.

    Where configurations ran with several seeds, the best is the best mean.
    """
    parser = Parser(prog="python -m search.refit", description=main.__doc__)
    parser.add_argument("--name", required=True, help="of the search")
    add_stores(parser.add_argument)
    parser.add_argument("--trial", type=int, metavar="N", help="its number (default: the best)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    console = Console(highlight=False, soft_wrap=True)
    default_uri = mlflow.get_tracking_uri()
    try:
        check_stores(args.storage, args.study, args.tracking_uri)
        folder = run_folder(args.name, args.storage)
        record = load_record(folder).reached(args.study, args.tracking_uri)
        trials = trials_frame(folder, record)
        row = _chosen(trials, record, args.trial)
        console.print(f"refit of trial {row['number']:05d}: {row['config'].describe()}")
        if len(row["seeds"]) > 1:
            console.print(f"the best mean over {len(row['seeds'])} seeds; their median thresholds")
        numbers = sorted(row["seeds"], key=lambda number: number != row["number"])
        configs = dict(zip(trials["number"], trials["config"], strict=True))
        rule = common_rule([_rule(folder, number, configs[number]) for number in numbers])
        _check_mlflow(record)
        with folder_for_images(Path(record.cache) if record.cache else None) as images:
            data = load_data(record.data, record.novel, images, note=console.print)
        target = folder / "refit" / f"{row['number']:05d}"
        _refit(row, rule, record, data, target, console)
        try:
            version = _register(record, row, target, data.images[:1])
        except (MlflowException, OSError) as error:
            reason = hidden(str(error).splitlines()[0])
            print(f"failed: {target} is written and predicts, but is not registered: {reason}",
                  file=sys.stderr)  # fmt: skip
            return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrialError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    is_default = record.tracking_uri == default_uri
    store = "" if is_default else f" --tracking-uri {shlex.quote(public(record.tracking_uri))}"
    console.print(
        f"wrote {target}\nregistered models:/{record.name}/{version}\nNext:\n"
        f"  python -m results.predict --model models:/{record.name}/{version} "
        f"--images IMAGES --out submission.csv{store}",
    )
    return 0


def _check_mlflow(record: SearchRecord) -> None:
    """Find out before hours of training that the model could not be registered."""
    try:
        MlflowClient(record.tracking_uri).search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RefitError(f"MLflow at {record.tracking_uri} does not answer ({reason})") from error


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


def _rule(folder: UPath, number: int, config: TrialConfig) -> Rule:
    """Return a trial's rule, chosen on all of its validation images."""
    return choose_rule(load_outputs(trial_folder(folder, number)), config)


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


def _refit(
    row: "pd.Series[Any]",
    rule: Rule,
    record: SearchRecord,
    data: Data,
    target: UPath,
    console: Console,
) -> None:
    """Train on everything for as many epochs as were best; the answers go by `rule`.

    The learning-rate schedule is that of the trial, ended early where its best epoch was.
    """
    config = replace(
        row["config"], super_novelty_score=rule.super_score, sub_novelty_score=rule.sub_score
    )
    pools = make_refit_pools(data, config)
    best_epoch = int(row["best_epoch"])

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
        note=console.print,
    )
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
    )


def _register(
    record: SearchRecord, row: "pd.Series[Any]", target: UPath, example_NHWC: torch.Tensor
) -> str:
    """Log the refitted classifier as a pyfunc model under the search's name; return its version."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(record.tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    tags = {"search": record.name, "search_id": record.id, "level": "refit"}
    with (
        mlflow.start_run(run_name=f"{record.name}-refit", tags=tags) as run,
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
                outputs=Schema([ColSpec(kind, name) for name, kind in pyfunc.OUTPUTS.items()]),
            ),
            input_example=example_NHWC.numpy(),
        )
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{record.name}'"):
        client.create_registered_model(record.name)
    version = client.create_model_version(
        record.name, logged.model_uri, run.info.run_id, model_id=logged.model_id
    )
    return str(version.version)


if __name__ == "__main__":
    sys.exit(main())
