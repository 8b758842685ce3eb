"""Does a search take as long as its images and trials say, and no longer?

`python -m tests.benchmarks.scale` runs a frozen search on 1, 2 and 4 times the built-in images,
then with 8, 16 and 32 trials on the smallest set, each from a cold cache; time should grow with
the images and with the trials in equal steps. Then 500 empty trials: the driver's own work
for each of the last hundred, in CPU seconds, should be that of the first hundred. That is
measured three times and the median counts: between two hundreds, a minute apart, the machine's own
speed changes as much. The last line is one JSON object.
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.common import Sources, built_in, finish, say
from tests.benchmarks.frozen_search import SPACE
from tests.benchmarks.searches import OurSearch, our_search

IMAGES_PER_SUBCLASS, NOVEL_PER_CLASS = 32, 200
"""Of the smallest set: 768 known images and 1200 borrowed ones."""
TICK_S = 0.01
"""Of the clock of a process's CPU time."""


def main(argv: list[str] | None = None) -> None:
    """Run the searches and print how their times grow."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    add = parser.add_argument
    add("--factors", type=int, nargs="+", default=[1, 2, 4], help="of the images")
    add("--trials", type=int, nargs="+", default=[8, 16, 32])
    add("--epochs", type=int, default=10)
    add("--empty-trials", type=int, default=500)
    add("--repetitions", type=int, default=3, help="of the empty trials")
    add("--image-size", type=int, default=64)
    add("--slots", type=int, default=os.cpu_count(), help="trials at once, one core each")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        data = {
            factor: built_in(
                scratch / f"images-{factor}x",
                images_per_subclass=IMAGES_PER_SUBCLASS * factor,
                novel_per_class=NOVEL_PER_CLASS * factor,
            )
            for factor in args.factors
        }
        runs = {
            (factor, trials): _run(scratch, data[factor], factor, trials, args)
            for factor, trials in dict.fromkeys(
                [(factor, args.trials[0]) for factor in args.factors]
                + [(args.factors[0], trials) for trials in args.trials]
            )
        }
        smallest = args.factors[0]
        empty = [
            _run(scratch / f"empty-{number}", data[smallest], smallest, args.empty_trials, args, 0)
            for number in range(args.repetitions)
        ]
    by_images = {factor: runs[factor, args.trials[0]].trials_s for factor in args.factors}
    by_trials = {trials: runs[args.factors[0], trials].trials_s for trials in args.trials}
    driver = [_growth(run.driver_s) for run in empty]
    ratio = median(growth["ratio"] for growth in driver)
    say(f"images: {_shown(by_images)}, {_slopes(by_images)} s for each further 1x")
    say(f"trials: {_shown(by_trials)}, {_slopes(by_trials)} s for each further trial")
    for growth in driver:
        say("driver: {first_s:.3f} s per trial at first, {last_s:.3f} s at last".format(**growth))
    say(f"median ratio of last to first: {ratio:.2f}")
    finish(
        {
            "benchmark": "scale",
            "ratio": ratio,
            "driver_cpu": driver,
            "wall": [_growth(run.ended_s) for run in empty],
            "empty_trials": args.empty_trials,
            "wall_s_by_images": by_images,
            "wall_s_by_trials": by_trials,
            "s_per_image_factor": _slopes(by_images),
            "s_per_trial": _slopes(by_trials),
            "epochs": args.epochs,
            "slots": args.slots,
            "image_size": args.image_size,
        }
    )


def _run(
    scratch: Path,
    given: Sources,
    factor: int,
    trials: int,
    args: argparse.Namespace,
    epochs: int | None = None,
) -> OurSearch:
    epochs = args.epochs if epochs is None else epochs
    say(f"{factor}x the images, {trials} trials of {epochs} epochs, cold cache")
    name = f"{factor}x-{trials}-{epochs}"
    return our_search(
        scratch / name, given, space=SPACE, trials=trials, epochs=epochs, slots=args.slots,
        cache=scratch / f"cache-{name}",
        # Two metrics keep a search from pruning; for untrained heads one will do, and costs less.
        arguments=["--set", f"image_size={args.image_size}"]
        + ([] if epochs else ["--metric", "score"]),
    )  # fmt: skip


def _growth(at_end_s: list[float]) -> dict[str, Any]:
    """Return the time per trial over the first and the last fifth, at most a hundred trials.

    The first trial is left out: what is done once is in it.
    """
    part = max(1, min(100, (len(at_end_s) - 1) // 5))
    first = (at_end_s[part] - at_end_s[0]) / part
    last = (at_end_s[-1] - at_end_s[-1 - part]) / part
    return {
        "trials": part,
        "first_s": first,
        "last_s": last,
        "ratio": max(last, TICK_S) / max(first, TICK_S),
    }


def _slopes(times: dict[int, float]) -> list[float]:
    """Return the time per step between neighbours; equal ones are linear growth."""
    points = sorted(times.items())
    return [
        round((later - time) / (more - few), 3)
        for (few, time), (more, later) in itertools.pairwise(points)
    ]


def _shown(times: dict[int, float]) -> str:
    return ", ".join(f"{count}: {time:.1f} s" for count, time in times.items())


if __name__ == "__main__":
    main()
