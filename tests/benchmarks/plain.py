"""The other side: the search that the Ray Tune and PyTorch tutorials would have one write.

A Dataset that opens image files with PIL, torchvision's transforms, a DataLoader, the backbone's
forward pass in every epoch (`plain_trial`), a stock Tuner with OptunaSearch, ASHAScheduler and
MLflowLoggerCallback. It trains the same backbone on the same images with the same batch size.

`python -m tests.benchmarks.plain --spec FILE --out FILE` runs one search in a process of its own,
where nothing of ours has changed Ray's settings, and writes when each trial did what.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from tests.benchmarks.plain_trial import Spec, Trial


def train_frozen(config: dict[str, Any], spec: Spec) -> None:
    """Train two heads on a frozen backbone; report every epoch with a checkpoint."""
    trial = Trial(spec, frozen=True, lr=config["lr"], weight_decay=config["weight_decay"])
    ready_s, ready_cpu_s = time.time(), time.process_time()
    for _ in range(spec.epochs):
        loss, accuracy = trial.train_epoch(), trial.validate()
        with tempfile.TemporaryDirectory() as folder:
            state = {"model": trial.model.state_dict(), "optimizer": trial.optimizer.state_dict()}
            torch.save(state, Path(folder) / "checkpoint.pt")
            tune.report(
                {
                    "loss": loss,
                    "accuracy": accuracy,
                    "ready_s": ready_s,
                    "now_s": time.time(),
                    "ready_cpu_s": ready_cpu_s,
                    "now_cpu_s": time.process_time(),
                },
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def train_nothing(config: dict[str, Any]) -> None:
    """Import torch, as every trial must, and report."""
    import torch  # noqa: F401

    now_s = time.time()
    tune.report({"loss": config["lr"], "ready_s": now_s, "now_s": now_s})


def search(spec: Spec, folder: Path) -> dict[str, Any]:
    """Run the search; return its wall time in seconds, and each trial's times on the clock."""
    ray.init(address="local", num_cpus=spec.slots, include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_parameters(train_frozen, spec=spec) if spec.epochs else train_nothing,
        param_space={
            "lr": tune.loguniform(3e-4, 3e-2),
            "weight_decay": tune.loguniform(1e-6, 1e-3),
        },
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            search_alg=OptunaSearch(),
            # No pruning on either side: the grace period is all epochs.
            scheduler=ASHAScheduler(max_t=max(1, spec.epochs), grace_period=max(1, spec.epochs)),
            num_samples=spec.trials,
            max_concurrent_trials=spec.slots,
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(folder / "results"),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[
                MLflowLoggerCallback(
                    tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name="plain"
                )
            ],
        ),
    )
    start_s = time.time()
    results = tuner.fit()
    wall_s = time.time() - start_s
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} plain trials failed: {results.errors[0]}")
    frames = [results[number].metrics_dataframe for number in range(len(results))]
    trials = [
        {name: frame[name].tolist() for name in map(str, frame) if name.endswith("_s")}
        for frame in frames
        if frame is not None
    ]
    ray.shutdown()
    return {"wall_s": wall_s, "start_s": start_s, "trials": trials}


def main() -> None:
    """Run the search that `--spec` describes."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plain")
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    spec = Spec(**json.loads(args.spec.read_text()))
    args.out.write_text(json.dumps(search(spec, args.out.parent)))


if __name__ == "__main__":
    main()
