"""How much more does the cheap estimate of a novel superclass promise for a tuned branch?

`python -m tests.benchmarks.left_out --data ZIP --novel ZIP --seeds 0 1 2` trains one configuration
with a tuned superclass branch twice for each seed and kind of tuning: with `left_out=features`,
where heads and banks that never saw a superclass sit on features that did, and with
`left_out=train`, where all of the branch is trained once more without it. Both train the same
model, so what they promise of it differs by what the cheap estimate promises too much. The last
line is one JSON object.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.common import finish, parser, say, sources
from trainable.config import TrialConfig
from trainable.data.dataset import Data, load_data
from trainable.train import train

METRICS = (
    "score", "unseen_super", "unseen_super_left_out_worst", "auroc_super_left_out",
    "known_rejected_super_left_out",
)  # fmt: skip
ESTIMATES = ("features", "train")


def configuration(fine_tune: str, seed: int, args: argparse.Namespace) -> TrialConfig:
    """Return what is trained, but for how superclasses are left out."""
    return TrialConfig(
        architecture="two_models",
        super_fine_tune=fine_tune,
        sub_fine_tune="frozen",
        super_lr=args.lr,
        sub_lr=3e-3,
        super_novelty_score=args.score,
        sub_novelty_score="max_logit",
        known_rejection_super=args.rejection,
        known_rejection_sub=0.12,
        novel_images=args.novel_images,
        image_size=args.image_size,
        feature_views=1,
        epochs=args.epochs,
        seed=seed,
    )


def rows_of(configs: Sequence[TrialConfig], data: Data, cache: Path) -> Iterator[dict[str, Any]]:
    """Train each configuration by both estimates; yield a row for each metric."""
    for config in configs:
        promised = {
            each: train(
                TrialConfig.from_dict(config.to_dict() | {"left_out": each}),
                data, _nothing, cache=cache, note=say,
            ).metrics
            for each in ESTIMATES
        }  # fmt: skip
        for metric in METRICS:
            row = {
                "fine_tune": config.of("super", "fine_tune"),
                "seed": config.seed,
                "metric": metric,
                **{each: promised[each][metric] for each in ESTIMATES},
            }
            row["optimism"] = row["features"] - row["train"]
            say("{fine_tune:7} seed {seed} {metric:29} {features:.3f} {train:.3f}".format(**row))
            yield row


def main(argv: list[str] | None = None) -> None:
    """Print what both estimates promise, for each seed and in the mean."""
    add = (options := parser("left_out", __doc__)).add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--fine-tune", nargs="+", default=["last_1", "full"], help="of the superclass branch")
    add("--epochs", type=int, default=3)
    add("--image-size", type=int, default=64)
    add("--novel-images", type=int, default=1000)
    add("--score", default="max_logit", help="novelty score of the superclass")
    add("--rejection", type=float, default=0.04, help="of known images, by the superclass")
    add("--lr", type=float, default=1e-3, help="of the superclass branch")
    add("--cache", type=Path, help="keep features here (default: nowhere)")
    args = options.parse_args(argv)
    configs = [
        configuration(fine_tune, seed, args) for fine_tune in args.fine_tune for seed in args.seeds
    ]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        given, cache = sources(args, Path(folder)), args.cache or Path(folder) / "cache"
        data = load_data(str(given.data), str(given.novel), cache, note=say)
        rows = list(rows_of(configs, data, cache))
    means: dict[str, dict[str, dict[str, float]]] = {}
    say("\nmean over seeds of what features and train promise, and the difference (of each seed)")
    for fine_tune in args.fine_tune:
        for metric in METRICS:
            own = [r for r in rows if (r["fine_tune"], r["metric"]) == (fine_tune, metric)]
            mean = {each: fmean(r[each] for r in own) for each in (*ESTIMATES, "optimism")}
            means.setdefault(fine_tune, {})[metric] = mean
            each = ", ".join(f"{r['optimism']:+.3f}" for r in own)
            say(
                f"{fine_tune:7} {metric:29} {mean['features']:.3f} {mean['train']:.3f} "
                f"{mean['optimism']:+.3f} ({each})"
            )
    finish(
        {
            "benchmark": "left_out", "seeds": args.seeds, "epochs": args.epochs,
            "image_size": args.image_size, "score": args.score, "mean": means, "rows": rows,
        }
    )  # fmt: skip


def _nothing(*_: Any) -> None:
    """Take a report and say nothing."""


if __name__ == "__main__":
    main()
