"""Is a GPU used as it should be? One card, at most 8 minutes, one JSON line.

`python -m tests.benchmarks.gpu` needs torch, torchvision and timm with what they depend on, and of
this project the folders `tests` and `trainable`: no network, no data set and no weights (images are
the built-in ones, drawn here; weights are random). In this order:

- `one_trial`: full fine-tuning, images per second of ours and of a plain PyTorch loop (asked: 3x);
- `packed`: 1, 4 and 8 processes that train at once, images per second in all (asked: 4 or 8 give
  5x one); beside it the ratio to the plain loop;
- `matrix`: training at 64 and 224 px by batch size, images per second and the share of the card's
  bf16 rate in matrix products, measured here (floating-point operations from torch's counter);
- `streamed`: images resident on the card against images read from the host for every batch;
- `prediction`: images per second of a saved classifier, and on which device;
- `precision`: validation metrics of one configuration in bf16, in float32, and in bf16 once more,
  which tells rounding from what a card does not repeat anyway.

The last line is one JSON object. What was not measured is null, with the reason in `not_measured`,
and the exit code is then 1. `--toy` runs everything small on the CPU: its figures mean nothing.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import timm
import torch
import torchvision.models
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.common import (
    Sources,
    built_in,
    finish,
    interleaved,
    load,
    plain_spec,
    say,
    synchronize,
)
from tests.benchmarks.plain_trial import Trial
from trainable.classifier import Classifier
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import Pools, make_pools
from trainable.model import backbones, inputs
from trainable.train import train
from trainable.trainer import Trainer

ONE_TRIAL_ASKED, PACKED_ASKED = 3.0, 5.0
COMPARED = (
    "train_loss", "score", "seen_super", "unseen_super", "seen_sub", "unseen_sub", "auroc_super",
    "auroc_sub", "oscr_sub",
)  # fmt: skip
"""Metrics of both precisions."""
START_LIMIT_S = 180
"""For the packed processes to import, load and train an epoch."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    backbones: tuple[str, ...]
    """For `one_trial`; the first one for everything else."""
    images_per_subclass: int
    novel_per_class: int
    repeats: int
    """Counted epochs of each side of `one_trial`."""
    plain_workers: int
    packings: tuple[int, ...]
    packed_images: int
    """Training images of a packed process: short epochs, so that all end at nearly one time."""
    seconds: float
    """Of training or predicting for each figure."""
    sizes_px: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    matrix_side: int
    precision_epochs: int


CARD = Size(
    backbones=("resnet50", "efficientnet_lite0"), images_per_subclass=128, novel_per_class=300,
    repeats=3, plain_workers=os.cpu_count() or 1, packings=(1, 4, 8), packed_images=1024, seconds=6,
    sizes_px=(64, 224), batch_sizes=(64, 256), matrix_side=8192, precision_epochs=5,
)  # fmt: skip
TOY = Size(
    backbones=("test_resnet", "efficientnet_lite0"), images_per_subclass=4, novel_per_class=4,
    repeats=1, plain_workers=0, packings=(1, 2), packed_images=8, seconds=0.0,
    sizes_px=(32,), batch_sizes=(8,), matrix_side=64, precision_epochs=1,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every section measures with."""

    size: Size
    given: Sources
    scratch: Path
    weights: Path
    """A folder with random weights for each backbone."""

    def config(self, **values: Any) -> TrialConfig:
        """Return a fine-tuning of the first backbone, on small images unless told otherwise."""
        small: dict[str, Any] = {
            "backbone": self.size.backbones[0],
            "image_size": self.size.sizes_px[0],
            "batch_size": self.size.batch_sizes[0],
            "alpha": 0.0,  # the plain loop has no interaction loss
        }
        return TrialConfig(**small | values)

    def load(self, config: TrialConfig) -> tuple[Data, Pools]:
        """Return the data as a trial of a search finds it, decoded once."""
        return load(self.given, config, self.scratch)

    def trainer(self, config: TrialConfig, num_images: int | None = None) -> Trainer:
        """Return a trial on the first `num_images` of the training images."""
        data, pools = self.load(config)
        pools = replace(pools, train=pools.train[:num_images])
        return Trainer(config, data, pools, cache=None, weights=self.weights, note=say)


def main(argv: list[str] | None = None) -> int:
    """Measure what there is time for, print one JSON line, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    add = parser.add_argument
    add("--toy", action="store_true", help="everything small, on the CPU, to see that it runs")
    add("--minutes", type=float, default=8.0, help="a section that could outlast them is left out")
    args = parser.parse_args(argv)
    if not (args.toy or torch.cuda.is_available()):
        say("error: a CUDA card is needed, torch finds none; --toy runs on the CPU")
        return 2
    if args.toy:
        torch.set_num_threads(1)  # what is so small is slower when shared out
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        bench = _bench(TOY if args.toy else CARD, Path(folder))
        figures, reasons = _measured(bench, start_s + 60 * args.minutes)
    ratio = figures["one_trial"] and figures["one_trial"][bench.size.backbones[0]]["ratio"]
    finish(
        {
            "benchmark": "gpu",
            "toy": args.toy,
            "ratio": ratio,
            **figures,
            "not_measured": reasons,
            "wall_s": time.monotonic() - start_s,
        }
    )
    return 1 if reasons else 0


def _bench(size: Size, scratch: Path) -> Bench:
    weights = scratch / "weights"
    weights.mkdir()
    for name in size.backbones:
        if name in torchvision.models.list_models():
            model = torchvision.models.get_model(name)
        else:
            model = timm.create_model(f"tf_{name}" if name in backbones.EMBEDDED else name)
        torch.save(model.state_dict(), weights / f"{name}.pth")
    say("drawing the built-in images")
    given = built_in(
        scratch / "images",
        images_per_subclass=size.images_per_subclass,
        novel_per_class=size.novel_per_class,
    )
    return Bench(size=size, given=given, scratch=scratch, weights=weights)


def _measured(
    bench: Bench, deadline_s: float
) -> tuple[dict[str, dict[str, Any] | None], dict[str, str]]:
    """Return each section's figures, null where it failed or no time was left, and why."""
    figures: dict[str, dict[str, Any] | None] = dict.fromkeys(SECTIONS)
    reasons = {}
    for name, (measure, needed_s) in SECTIONS.items():
        left_s = deadline_s - time.monotonic()
        if not left_s >= (needed_s if bench.size is CARD else 0):
            reasons[name] = f"{left_s:.0f} s were left, {needed_s} may be needed: see --minutes"
            continue
        say(f"--- {name}")
        try:
            figures[name] = measure(bench)
            say(f"{name}: {figures[name]}")
        except Exception as error:  # noqa: BLE001 - a card is rented: the other figures still count
            traceback.print_exc()
            reasons[name] = f"{type(error).__name__}: {error}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return figures, reasons


def _one_trial(bench: Bench) -> dict[str, Any]:
    return {name: _against_plain(bench, name) for name in bench.size.backbones}


def _against_plain(bench: Bench, backbone: str) -> dict[str, Any]:
    config = bench.config(backbone=backbone)
    data, pools = bench.load(config)
    trainer = bench.trainer(config)
    spec = replace(
        plain_spec(bench.given, config, data, pools, bench.scratch),
        weights=str(bench.weights), workers=bench.size.plain_workers,
    )  # fmt: skip
    plain = Trial(spec, frozen=False, lr=config.lr, weight_decay=config.weight_decay)
    rates = interleaved(
        len(pools.train),
        {"ours": trainer.train_epoch, "plain": lambda _: plain.train_epoch()},
        bench.size.repeats,
    )
    ours, theirs = median(rates["ours"]), median(rates["plain"])
    return {
        "ratio": ours / theirs,
        "asked": ONE_TRIAL_ASKED,
        "ours_images_per_s": ours,
        "plain_images_per_s": theirs,
        "all_images_per_s": rates,
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "plain_workers": spec.workers,
    }


def _packed(bench: Bench) -> dict[str, Any]:
    """Start all processes once; at each packing that many train and the others wait."""
    rates: dict[int, float] = {}
    with _crew(bench, max(bench.size.packings)) as crew:
        for num in bench.size.packings:
            for pipe in crew[:num]:
                pipe.send(bench.size.seconds)
            rates[num] = sum(_answer(pipe) for pipe in crew[:num])
            say(f"{num} at once: {rates[num]:.0f} images/s in all")
    alone = rates[1]
    config = bench.config()
    return {
        "ratio": max(rates.values()) / alone,
        "asked": PACKED_ASKED,
        "ratio_by_processes": {num: rate / alone for num, rate in rates.items()},
        "images_per_s": rates,
        "backbone": config.backbone,
        "image_size": config.image_size,
        "batch_size": config.batch_size,
    }


@contextmanager
def _crew(bench: Bench, num: int) -> Iterator[list[Connection]]:
    """Give a pipe to each of `num` processes that are ready to train; end them."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(num):
            pipe, other = context.Pipe()
            process = context.Process(target=_train_on_demand, args=(bench, other), daemon=True)
            process.start()
            other.close()  # so that a process that died is noticed
            pipes.append(pipe)
            processes.append(process)
        for pipe in pipes:
            _answer(pipe)
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _answer(pipe: Connection) -> float:
    """Return what a process of the crew says, images per second.

    Raises:
        RuntimeError: It failed, died or took too long.
    """
    if not pipe.poll(START_LIMIT_S):
        raise RuntimeError(f"a packed process said nothing for {START_LIMIT_S} s")
    try:
        answer: float | str = pipe.recv()
    except EOFError:
        raise RuntimeError("a packed process died") from None
    if isinstance(answer, str):
        raise RuntimeError(f"a packed process failed: {answer}")
    return answer


def _train_on_demand(bench: Bench, pipe: Connection) -> None:
    """Build a trial; then train for as many seconds as asked, and answer with images per second."""
    try:
        torch.set_num_threads(1)  # as a worker of a search that shares a machine
        trainer = bench.trainer(bench.config(), bench.size.packed_images)
        trainer.train_epoch(1)
        pipe.send(0.0)
        while True:
            pipe.send(_rate(trainer, pipe.recv()))
    except (RuntimeError, OSError, ValueError) as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _rate(trainer: Trainer, seconds: float) -> float:
    """Return the images per second of whole epochs for `seconds`, at least one, after a first."""
    trainer.train_epoch(1)
    synchronize()
    start_s, epochs, passed_s = time.perf_counter(), 0, 0.0
    while not epochs or passed_s < seconds:
        epochs += 1
        trainer.train_epoch(epochs + 1)
        synchronize()
        passed_s = time.perf_counter() - start_s
    return epochs * len(trainer.pools.train) / passed_s


def _matrix(bench: Bench) -> dict[str, Any]:
    matrix_rate = _bf16_flops_per_s(bench.size.matrix_side)
    say(f"bf16 matrix products: {matrix_rate / 1e12:.3g} TFLOP/s measured")
    rows = []
    for image_size in bench.size.sizes_px:
        for batch_size in bench.size.batch_sizes:
            config = bench.config(image_size=image_size, batch_size=batch_size)
            row: dict[str, Any] = {"image_size": image_size, "batch_size": batch_size}
            rows.append(row)
            try:
                trainer = bench.trainer(config)
                per_image, rate = _flops_per_image(trainer), _rate(trainer, bench.size.seconds)
            except torch.cuda.OutOfMemoryError as error:
                row |= {"images_per_s": None, "not_measured": str(error)}
                continue
            row["images_per_s"], row["gflops_per_image"] = rate, per_image / 1e9
            row["bf16_fraction"] = rate * per_image / matrix_rate
            say(f"{row}")
    return {
        "bf16_tflops_per_s": matrix_rate / 1e12,
        "backbone": bench.size.backbones[0],
        "training": rows,
    }


def _bf16_flops_per_s(side: int) -> float:
    """Return the rate of the best of three runs of square bf16 products."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    times_s = []
    for _ in range(4):  # the first one warms up
        synchronize()
        start_s = time.perf_counter()
        for _ in range(20):
            a @ b
        synchronize()
        times_s.append(time.perf_counter() - start_s)
    return 20 * 2 * side**3 / min(times_s[1:])


def _flops_per_image(trainer: Trainer) -> float:
    """Return the floating-point operations of a forward and backward pass per image."""
    rows = trainer.pools.train[: trainer.config.batch_size]
    with FlopCounterMode(display=False) as counter:
        for _, loss, of_folds in trainer._losses([rows] * len(trainer.branches), 1, 0):
            (loss + of_folds).backward()
    return float(counter.get_total_flops()) / len(rows)


def _streamed(bench: Bench) -> dict[str, Any]:
    rates = {}
    for where, fraction in (("resident", inputs.RESIDENT_FRACTION), ("streamed", 0.0)):
        inputs._resident_images.cache_clear()
        with mock.patch.object(inputs, "RESIDENT_FRACTION", fraction):
            rates[where] = _rate(bench.trainer(bench.config()), bench.size.seconds)
    inputs._resident_images.cache_clear()
    return {
        "ratio": rates["resident"] / rates["streamed"],
        "images_per_s": rates,
        "image_size": bench.size.sizes_px[0],
        "batch_size": bench.size.batch_sizes[0],
    }


def _prediction(bench: Bench) -> dict[str, Any]:
    config = bench.config(epochs=0)
    data, _ = bench.load(config)
    folder: Any = bench.scratch / "classifier"  # a plain path will do where nothing is remote
    train(
        config, data, lambda metrics: None, folder=folder, weights=bench.weights, note=say
    )  # fmt: skip
    classifier = Classifier.load(folder, bench.weights)
    images = torch.as_tensor(data.images[:1024])
    classifier.predict(images)
    start_s, num, passed_s = time.perf_counter(), 0, 0.0
    while not num or passed_s < bench.size.seconds:
        classifier.predict(images)
        num += len(images)
        passed_s = time.perf_counter() - start_s
    return {
        "images_per_s": num / passed_s,
        "device": str(classifier._branches[0].mean.device),
        "backbone": config.backbone,
        "image_size": config.image_size,
    }


def _precision(bench: Bench) -> dict[str, Any]:
    config = bench.config(epochs=bench.size.precision_epochs, lr=1e-3, novel_images=1000)
    data, _ = bench.load(config)
    pools = make_pools(data, config)
    allow_tf32 = torch.backends.cudnn.allow_tf32
    metrics, seconds = {}, {}
    for name in ("bf16", "float32", "bf16_again"):
        start_s = time.perf_counter()
        metrics[name] = train(
            config, data, lambda metrics: None, pools=pools, weights=bench.weights, note=say,
            is_fast=name != "float32",
        ).metrics  # fmt: skip
        seconds[name] = time.perf_counter() - start_s
        torch.backends.cudnn.allow_tf32 = allow_tf32
    return {
        "float32_less_bf16": {k: metrics["float32"][k] - metrics["bf16"][k] for k in COMPARED},
        "bf16_again_less_bf16": {
            k: metrics["bf16_again"][k] - metrics["bf16"][k] for k in COMPARED
        },
        "float32": {k: metrics["float32"][k] for k in COMPARED},
        "seconds": seconds,
        "epochs": config.epochs,
        "backbone": config.backbone,
        "image_size": config.image_size,
    }


SECTIONS: dict[str, tuple[Callable[[Bench], dict[str, Any]], int]] = {
    "one_trial": (_one_trial, 90),
    "packed": (_packed, 90),
    "matrix": (_matrix, 75),
    "streamed": (_streamed, 40),
    "prediction": (_prediction, 40),
    "precision": (_precision, 60),
}
"""What is measured, the most asked for first, with the seconds that it may take at most."""


if __name__ == "__main__":
    raise SystemExit(main())
