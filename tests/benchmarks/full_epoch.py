"""How many images per second does one full fine-tuning epoch take, against the plain script?

`python -m tests.benchmarks.full_epoch` trains the same backbone on the same images with the same
batch size, one side after the other in one process, and compares the medians. `gpu` asks this and
more of a GPU. The last line is one JSON object.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from tests.benchmarks.common import finish, interleaved, load, parser, plain_spec, say, sources
from tests.benchmarks.plain_trial import Trial
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import Pools
from trainable.trainer import Trainer


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
        other = Trial(
            replace(spec, workers=args.workers),
            frozen=False, lr=config.lr, weight_decay=config.weight_decay,
        )  # fmt: skip
        rates = interleaved(
            len(pools.train),
            {
                "ours": lambda epoch: trainer.train_epoch(epoch),
                "plain": lambda _: other.train_epoch(),
            },
            args.repeats,
        )
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
    )


def _first(pools: Pools, num_images: int | None) -> Pools:
    """Return the pools with a random part of the training images."""
    if num_images is None:
        return pools
    order = torch.randperm(len(pools.train), generator=torch.Generator().manual_seed(0))
    return replace(pools, train=pools.train[order[:num_images]])


def _trainer(config: TrialConfig, data: Data, pools: Pools) -> Trainer:
    return Trainer(config, data, pools, cache=None, weights=None, note=say)


if __name__ == "__main__":
    main()
