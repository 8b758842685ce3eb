"""What does a trial cost before it trains anything?

`python -m tests.benchmarks.trial_overhead` runs empty trials: ours build the model, find the
cached features, evaluate the untrained heads and save model, outputs and checkpoint; the plain
ones import torch and report. Both write to MLflow in SQLite. Wall time per trial and slot, without
the start of the driver and of Ray on either side: `whole` counts the first workers' start,
`steady` only what lies between the first and the last trial's end. The last line is one JSON
object.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.common import finish, load, parser, plain_spec, say, sources
from tests.benchmarks.frozen_search import SPACE
from tests.benchmarks.searches import our_search, plain_search
from trainable.config import TrialConfig
from trainable.train import train


def main(argv: list[str] | None = None) -> None:
    """Time both sides and print the ratio."""
    add = (options := parser("trial_overhead", __doc__)).add_argument
    add("--trials", type=int, default=24)
    add("--image-size", type=int, default=64)
    add("--slots", type=int, default=os.cpu_count(), help="trials at once, one core each")
    args = options.parse_args(argv)
    config = TrialConfig(fine_tune="frozen", image_size=args.image_size, epochs=0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        given = sources(args, scratch)
        data, pools = load(given, config, scratch)
        train(config, data, lambda _: None, cache=scratch / "cache")  # features are not the matter
        say(f"ours: {args.trials} empty trials")
        ours = our_search(
            scratch / "ours", given, space=SPACE, trials=args.trials, epochs=0, slots=args.slots,
            cache=scratch / "cache",
            arguments=["--set", f"image_size={args.image_size}", "--metric", "score"],
        )  # fmt: skip
        say(f"plain: {args.trials} empty trials")
        spec = plain_spec(given, config, data, pools, scratch)
        plain = plain_search(
            scratch / "plain", replace(spec, trials=args.trials, epochs=0, slots=args.slots)
        )
    plain_ended = sorted(trial["now_s"][-1] - plain["start_s"] for trial in plain["trials"])
    walls = {"ours": ours.trials_s, "plain": plain_ended[-1]}
    ended = {"ours": ours.ended_s, "plain": plain_ended}
    per_trial = {side: wall * args.slots / args.trials for side, wall in walls.items()}
    steady = {
        side: (times[-1] - times[0]) * args.slots / (args.trials - 1)
        for side, times in ended.items()
    }
    say(f"per trial and slot: ours {per_trial['ours']:.2f} s, plain {per_trial['plain']:.2f} s")
    say(f"between trials:     ours {steady['ours']:.2f} s, plain {steady['plain']:.2f} s")
    ratio = per_trial["plain"] / per_trial["ours"]
    say(f"ratio, plain to ours: {ratio:.1f}; between trials {steady['plain'] / steady['ours']:.1f}")
    finish(
        {
            "benchmark": "trial_overhead",
            "ratio": ratio,
            "ratio_steady": steady["plain"] / steady["ours"],
            "per_trial_s": per_trial,
            "steady_s": steady,
            "trials": args.trials,
            "slots": args.slots,
        }
    )


if __name__ == "__main__":
    main()
