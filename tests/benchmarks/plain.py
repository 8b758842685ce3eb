"""The other side: the search that the Ray Tune and PyTorch tutorials would have one write.

A Dataset that opens image files with PIL, torchvision's transforms, a DataLoader, the backbone's
forward pass in every epoch, a stock Tuner with OptunaSearch, ASHAScheduler and
MLflowLoggerCallback. It trains the same backbone on the same images with the same batch size.

`python -m tests.benchmarks.plain --spec FILE --out FILE` runs one search in a process of its own,
where nothing of ours has changed Ray's settings, and writes when each trial did what.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.nn.functional as F
from PIL import Image
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainable import backbones

Row = tuple[str, int, int]
"""Image file, output of the superclass head, output of the subclass head."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is trained, on what, and how often."""

    train: Sequence[Row]
    val: Sequence[Row]
    num_super: int
    num_sub: int
    backbone: str
    image_size: int
    batch_size: int
    epochs: int = 1
    """0: empty trials, which import torch and report once."""
    trials: int = 1
    slots: int = 1
    """Trials at once, one core each."""
    workers: int = 0
    """Processes of each DataLoader. A trial that has one core is fastest without."""


class ImageFiles(Dataset[tuple[torch.Tensor, int, int]]):
    """Image files and their two labels."""

    def __init__(self, rows: Sequence[Row], transform: transforms.Compose) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        path, superclass, subclass = self.rows[index]
        image = Image.open(path).convert("RGB")
        return self.transform(image), superclass, subclass


class TwoHeads(nn.Module):
    """A pretrained backbone and a linear head for each task."""

    def __init__(self, spec: Spec, *, frozen: bool) -> None:
        super().__init__()
        backbone = backbones.build(spec.backbone, spec.image_size)
        self.backbone = nn.Sequential(*backbone.stages).requires_grad_(not frozen)
        self.super_head = nn.Linear(backbone.num_features, spec.num_super)
        self.sub_head = nn.Linear(backbone.num_features, spec.num_sub)
        self.normalize = transforms.Normalize(backbone.mean, backbone.std)
        self.frozen = frozen

    def train(self, mode: bool = True) -> "TwoHeads":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(images)
        return self.super_head(features), self.sub_head(features)


class Trial:
    """Model, data and optimizer of one trial."""

    def __init__(self, spec: Spec, *, frozen: bool, lr: float, weight_decay: float) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = TwoHeads(spec, frozen=frozen).to(self.device)
        resize = transforms.Resize((spec.image_size, spec.image_size))
        to_input = [transforms.ToTensor(), self.model.normalize]
        augment = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(10)]
        train = ImageFiles(spec.train, transforms.Compose([resize, *augment, *to_input]))
        val = ImageFiles(spec.val, transforms.Compose([resize, *to_input]))
        self.train_loader, self.val_loader = (
            DataLoader(
                dataset,
                batch_size=spec.batch_size,
                shuffle=dataset is train,
                num_workers=spec.workers,
                persistent_workers=spec.workers > 0,
                pin_memory=self.device.type == "cuda",
            )
            for dataset in (train, val)
        )
        self.num_train, self.num_val = len(train), len(val)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay)

    def train_epoch(self) -> float:
        """Pass once over the training images; return the mean loss."""
        self.model.train()
        total = 0.0
        for images, superclass, subclass in self.train_loader:
            super_logits, sub_logits = self.model(images.to(self.device))
            loss = F.cross_entropy(super_logits, superclass.to(self.device))
            loss = loss + F.cross_entropy(sub_logits, subclass.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(images)
        return total / self.num_train

    @torch.no_grad()
    def validate(self) -> float:
        """Return the fraction of subclasses that are right."""
        self.model.eval()
        right = 0
        for images, _, subclass in self.val_loader:
            _, sub_logits = self.model(images.to(self.device))
            right += int((sub_logits.argmax(1) == subclass.to(self.device)).sum())
        return right / self.num_val


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
