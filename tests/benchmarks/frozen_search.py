"""How long does a search over frozen backbones take, against the plain script?

`python -m tests.benchmarks.frozen_search` runs our whole command from a cold cache (decoding,
features, trials, tables) and the plain search over the same space on the same images. The plain
side would take long, so by default a part of it runs and the rest is extrapolated, against us:
the fastest start of a trial and the fastest epoch count for all of them, the start of its driver,
of Ray and of its first workers not at all, while ours is timed from the command to its exit.
`--whole` runs all of it. The ratio of CPU seconds stands beside that of wall time: on a machine
that does other work it is the steadier one. The last line is one JSON object.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.benchmarks.common import finish, load, parser, plain_spec, say, sources
from tests.benchmarks.searches import our_search, plain_epochs_s, plain_search, plain_starts_s
from trainable.config import TrialConfig

SPACE = Path(__file__).with_name("frozen_space.py")


def main(argv: list[str] | None = None) -> None:
    """Time both sides and print the ratio."""
    add = (options := parser("frozen_search", __doc__)).add_argument
    add("--trials", type=int, default=16)
    add("--epochs", type=int, default=10)
    add("--image-size", type=int, default=64)
    add("--slots", type=int, default=os.cpu_count(), help="trials at once, one core each")
    add("--repeats", type=int, default=1, help="of our side, each from a cold cache")
    add("--plain-trials", type=int, help="(default: two for each slot)")
    add("--plain-epochs", type=int, default=2)
    add("--whole", action="store_true", help="run all of the plain side")
    args = options.parse_args(argv)
    plain_trials = args.trials if args.whole else args.plain_trials or 2 * args.slots
    plain_epochs = args.epochs if args.whole else args.plain_epochs
    if plain_trials <= args.slots:
        options.error("--plain-trials must be above --slots: a start follows another trial's end")
    config = TrialConfig(fine_tune="frozen", image_size=args.image_size, epochs=args.epochs)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        given = sources(args, scratch)
        data, pools = load(given, config, scratch)
        spec = plain_spec(given, config, data, pools, scratch)
        ours_s, ours_cpu_s = [], []
        for repeat in range(args.repeats):
            say(f"ours: {args.trials} trials of {args.epochs} epochs, cold cache")
            ours = our_search(
                scratch / f"ours-{repeat}", given, space=SPACE, trials=args.trials,
                epochs=args.epochs, slots=args.slots, cache=scratch / f"cold-{repeat}",
                arguments=["--set", f"image_size={args.image_size}"],
            )  # fmt: skip
            ours_s.append(ours.wall_s)
            ours_cpu_s.append(ours.cpu_s)
            say(f"ours: {ours.wall_s:.1f} s, of which trials {ours.trials_s:.1f} s")
        say(f"plain: {plain_trials} trials of {plain_epochs} epochs")
        plain = plain_search(
            scratch / "plain",
            replace(spec, trials=plain_trials, epochs=plain_epochs, slots=args.slots),
        )
    starts_s, epochs_s = plain_starts_s(plain, args.slots), plain_epochs_s(plain)
    plain_s = plain["wall_s"]
    if not args.whole:
        plain_s = args.trials / args.slots * (min(starts_s) + args.epochs * min(epochs_s))
    start_cpu_s = min(trial["ready_cpu_s"][0] for trial in plain["trials"])
    epochs_cpu_s = plain_epochs_s(plain, "cpu_")
    plain_cpu_s = args.trials * (start_cpu_s + args.epochs * min(epochs_cpu_s))
    ratio, ratio_cpu = plain_s / median(ours_s), plain_cpu_s / median(ours_cpu_s)
    how = "measured" if args.whole else "extrapolated from the fastest start and epoch measured"
    say(f"plain: {plain_s:.0f} s ({how}: start {min(starts_s):.1f} s, epoch {min(epochs_s):.1f} s)")
    say(f"ratio of medians, plain to ours: {ratio:.1f}; of CPU seconds {ratio_cpu:.1f}")
    finish(
        {
            "benchmark": "frozen_search",
            "ratio": ratio,
            "ours_s": median(ours_s),
            "plain_s": plain_s,
            "ratio_cpu": ratio_cpu,
            "ours_cpu_s": median(ours_cpu_s),
            "plain_cpu_s": plain_cpu_s,
            "plain_start_cpu_s": start_cpu_s,
            "plain_epoch_cpu_s": {"min": min(epochs_cpu_s), "median": median(epochs_cpu_s)},
            "extrapolated": not args.whole,
            "plain_start_s": {"min": min(starts_s), "median": median(starts_s)},
            "plain_epoch_s": {"min": min(epochs_s), "median": median(epochs_s)},
            "plain_trials_run": plain_trials,
            "plain_epochs_run": plain_epochs,
            "trials": args.trials,
            "epochs": args.epochs,
            "slots": args.slots,
            "image_size": args.image_size,
            "batch_size": config.batch_size,
            "train_images": len(pools.train),
            "val_images": len(pools.val),
        }
    )


if __name__ == "__main__":
    main()
