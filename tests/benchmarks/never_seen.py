"""Which novelty score of the superclass tells a known superclass from another one?

`python -m tests.benchmarks.never_seen --data ZIP --novel ZIP` answers it for a frozen backbone by
all classes instead of those that one seed draws: heads and banks are asked about what they did not
train on, half of the images a twentieth at a time, and every subclass and superclass once. Known
are images of seen subclasses and of ones that training never showed, which count alike; a bound
says which share of them may be rejected, and a superclass that was left out is to be found. The
last line is one JSON object.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tests.benchmarks.common import finish, parser, say, sources
from trainable.config import TrialConfig
from trainable.data.dataset import Data, load_data
from trainable.data.splits import LEFT_OUT, PSEUDO_NOVEL, SEEN
from trainable.novelty.rule import acceptance, conformal_threshold, joined
from trainable.novelty.scores.sums import standardised
from trainable.novelty.thresholds import Outputs
from trainable.out_of_fold import pools_of_refit, without
from trainable.train import train

SCORES = ("knn_difference", "rmds", "knn_difference+rmds")


def configuration(args: argparse.Namespace) -> TrialConfig:
    """Return what is trained; the subclass branch is as cheap as can be, as nobody asks it."""
    parts = dict.fromkeys(part for score in args.scores for part in score.split("+"))
    return TrialConfig(
        architecture="two_models",
        fine_tune="frozen",
        super_backbone=args.backbone,
        super_image_size=args.image_size,
        sub_image_size=32,
        feature_views=1,
        super_lr=1e-3,
        batch_size=32,
        epochs=args.epochs,
        novel_images=args.novel_images,
        super_novelty_score="+".join(parts),
        sub_novelty_score="max_logit",
        label_smoothing=0.1,
        seed=args.seed,
    )


def asked(data: Data, config: TrialConfig, cache: Path) -> Outputs:
    """Return what heads say about images, subclasses and superclasses that they did not see."""
    pools = pools_of_refit(data, config)
    superclasses = [
        without(pools.whole, data.superclass == superclass, LEFT_OUT)
        for superclass in range(len(data.superclasses))
    ]
    shares = [*pools.twentieths, *pools.subclasses, *superclasses]
    result = train(
        config, data, _nothing, pools=pools.whole, shares=shares, judge=False, cache=cache, note=say
    )
    return joined(result.shares)


def rows_of(said: Outputs, scores: Sequence[str], bounds: Sequence[float]) -> Iterator[Any]:
    """Yield what each score finds at each bound: shares of images, 0 to 1."""
    is_known = said.kind != LEFT_OUT
    for plain in scores:
        score = standardised(plain, lambda part: said.score("super", part)[is_known])
        accepted = acceptance(said, "super", score)
        for bound in bounds:
            tau = conformal_threshold(accepted[is_known], bound, said.kind[is_known])

            def rejected(of: torch.Tensor, score: Any = accepted, tau: float = tau) -> float:
                return float((~(score[of] >= tau)).double().mean())

            found = [
                rejected((said.kind == LEFT_OUT) & (said.super_target == each))
                for each in said.super_target[said.kind == LEFT_OUT].unique().tolist()
            ]
            row = {
                "score": plain,
                "bound": bound,
                "seen": rejected(said.kind == SEEN),
                "unseen": rejected(said.kind == PSEUDO_NOVEL),
                "found": fmean(found),
                "worst": min(found),
            }
            line = "{score:26} {bound:5} {seen:.3f} {unseen:.3f} {found:.3f} {worst:.3f}"
            say(line.format(**row))
            yield row


def main(argv: list[str] | None = None) -> None:
    """Print what each score rejects and finds at each bound."""
    add = (options := parser("never_seen", __doc__)).add_argument
    add("--scores", nargs="+", default=[*SCORES], help="novelty scores, or sums of them")
    add("--bounds", type=float, nargs="+", default=[0.01, 0.015, 0.02, 0.03])
    add("--backbone", default="efficientnet_lite0+efficientnet_lite2")
    add("--image-size", type=int, default=192)
    add("--novel-images", type=int, default=1000)
    add("--epochs", type=int, default=6, help="of the heads, which may call an image novel, too")
    add("--seed", type=int, default=0)
    add("--cache", type=Path, help="keep features here (default: nowhere)")
    args = options.parse_args(argv)
    config = configuration(args)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        given, cache = sources(args, Path(folder)), args.cache or Path(folder) / "cache"
        data = load_data(str(given.data), str(given.novel), cache, note=say)
        if len(data.superclasses) < 2:
            options.error("--data has one superclass, so that none can be left out")
        said = asked(data, config, cache)
    say("\nscore, bound; rejected of seen subclasses, of others; found of a superclass, the worst")
    rows = list(rows_of(said, args.scores, args.bounds))
    settings = vars(args) | {"data": str(given.data), "novel": str(given.novel), "cache": None}
    finish({"benchmark": "never_seen", "rows": rows} | settings)


def _nothing(*_: Any) -> None:
    """Take a report and say nothing."""


if __name__ == "__main__":
    main()
