"""How many images per second does one full fine-tuning epoch take, against the plain script?

`python -m tests.benchmarks.full_epoch` trains the same backbone on the same images with the same
batch size, one side after the other in one process, and compares the medians. On a GPU it goes on
with 1, 2, 4 and 8 processes that train at once, and with the share of the card's measured bf16
matrix rate. The last line is one JSON object.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import plain
from tests.benchmarks.common import Sources, finish, load, parser, plain_spec, say, sources
from trainable.config import TrialConfig
from trainable.data import Data
from trainable.splits import Pools
from trainable.train import Trainer

PACKINGS = (1, 2, 4, 8)
MATRIX_SIDE = 8192
MATRIX_REPEATS = 50
PACKED_LIMIT_S = 600


def main(argv: list[str] | None = None) -> None:
    """Time both sides and print the ratio."""
    add = (options := parser("full_epoch", __doc__)).add_argument
    add("--backbone", default=TrialConfig.backbone)
    add("--image-size", type=int, default=64)
    add("--batch-size", type=int, default=64)
    add("--images", type=int, help="training images (default: all)")
    add("--repeats", type=int, default=3)
    add("--workers", type=int, default=os.cpu_count(), help="of the plain side's DataLoader")
    args = options.parse_args(argv)
    config = TrialConfig(
        backbone=args.backbone, image_size=args.image_size, batch_size=args.batch_size, alpha=0.0
    )
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        given = sources(args, scratch)
        data, pools = load(given, config, scratch)
        pools = _first(pools, args.images)
        spec = plain_spec(given, config, data, pools, scratch)
        trainer = _trainer(config, data, pools)
        other = plain.Trial(
            replace(spec, workers=args.workers),
            frozen=False, lr=config.lr, weight_decay=config.weight_decay,
        )  # fmt: skip
        rates = _interleaved(
            len(pools.train),
            {
                "ours": lambda epoch: trainer.train_epoch(epoch),
                "plain": lambda _: other.train_epoch(),
            },
            args.repeats,
        )
        result: dict[str, Any] = {}
        if torch.cuda.is_available():
            del other
            result = _on_gpu(given, config, args.images, trainer, rates)
    medians = {side: median(values) for side, values in rates.items()}
    ratio = medians["ours"] / medians["plain"]
    say(f"ours {medians['ours']:.0f} images/s, plain {medians['plain']:.0f}")
    say(f"ratio of medians, ours to plain: {ratio:.2f}")
    finish(
        {
            "benchmark": "full_epoch",
            "ratio": ratio,
            "images_per_s": medians,
            "all_images_per_s": rates,
            "train_images": len(pools.train),
            "backbone": args.backbone,
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "plain_workers": args.workers,
        }
        | result
    )


def _first(pools: Pools, num_images: int | None) -> Pools:
    """Return the pools with a random part of the training images."""
    if num_images is None:
        return pools
    order = torch.randperm(len(pools.train), generator=torch.Generator().manual_seed(0))
    return replace(pools, train=pools.train[order[:num_images]])


def _trainer(config: TrialConfig, data: Data, pools: Pools) -> Trainer:
    return Trainer(config, data, pools, cache=None, weights=None, note=say)


def _interleaved(
    num_images: int, sides: dict[str, Callable[[int], Any]], repeats: int
) -> dict[str, list[float]]:
    """Return each side's images per second, one epoch of each in turn, after a first one."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for epoch in range(repeats + 1):
        for side, train_epoch in sides.items():
            start_s = time.perf_counter()
            train_epoch(epoch + 1)
            _synchronize()
            rate = num_images / (time.perf_counter() - start_s)
            say(f"{side}: {rate:.0f} images/s{'' if epoch else ' (to warm up, not counted)'}")
            if epoch:
                rates[side].append(rate)
    return rates


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _on_gpu(
    given: Sources,
    config: TrialConfig,
    num_images: int | None,
    trainer: Trainer,
    rates: dict[str, list[float]],
) -> dict[str, Any]:
    """Return what a GPU adds: packed trials, and the share of its bf16 matrix rate."""
    matrix_rate, per_image = _bf16_flops_per_s(), _flops_per_image(trainer)
    say(f"bf16 matrix products: {matrix_rate / 1e12:.0f} TFLOP/s measured")
    packed = {}
    for num in PACKINGS:
        packed[num] = _packed_rate(given, config, num_images, num)
        say(f"{num} at once: {packed[num]:.0f} images/s in all")
    return {
        "bf16_tflops_per_s": matrix_rate / 1e12,
        "gflops_per_image": per_image / 1e9,
        "bf16_fraction": median(rates["ours"]) * per_image / matrix_rate,
        "packed_images_per_s": packed,
        "best_packed_ratio": max(packed.values()) / median(rates["plain"]),
        "best_packed_bf16_fraction": max(packed.values()) * per_image / matrix_rate,
    }


def _bf16_flops_per_s() -> float:
    a, b = torch.randn(2, MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=torch.bfloat16)
    for timed in (False, True):
        _synchronize()
        start_s = time.perf_counter()
        for _ in range(MATRIX_REPEATS):
            a @ b
        _synchronize()
        if timed:
            return 2 * MATRIX_SIDE**3 * MATRIX_REPEATS / (time.perf_counter() - start_s)
    raise AssertionError


def _flops_per_image(trainer: Trainer) -> float:
    """Return the floating-point operations of a forward and backward pass per image."""
    rows = trainer.pools.train[: trainer.config.batch_size]
    with FlopCounterMode(display=False) as counter:
        for loss in trainer._losses(rows, 1, 0):
            loss.backward()
    return float(counter.get_total_flops()) / len(rows)


def _packed_rate(given: Sources, config: TrialConfig, num_images: int | None, num: int) -> float:
    """Return the images per second of `num` processes together."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(num), context.Queue()
    processes = [
        context.Process(target=_packed, args=(given, config, num_images, barrier, times))
        for _ in range(num)
    ]
    for process in processes:
        process.start()
    done: list[tuple[int, float, float]] = [times.get(timeout=PACKED_LIMIT_S) for _ in processes]
    for process in processes:
        process.join()
    return sum(images for images, _, _ in done) / (
        max(end for _, _, end in done) - min(start for _, start, _ in done)
    )


def _packed(
    given: Sources, config: TrialConfig, num_images: int | None, barrier: Any, times: Any
) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data, pools = load(given, config, Path(folder))
        trainer = _trainer(config, data, _first(pools, num_images))
        trainer.train_epoch(1)
        barrier.wait(PACKED_LIMIT_S)
        start_s = time.time()
        trainer.train_epoch(2)
        _synchronize()
        times.put((len(trainer.pools.train), start_s, time.time()))


if __name__ == "__main__":
    main()
