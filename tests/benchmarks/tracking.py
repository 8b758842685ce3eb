"""How many finished trials a second does MLflow take from a search?

`python -m tests.benchmarks.tracking --trials 200` starts an MLflow server on SQLite, gives the
tracker that many complete trials at once, as it has them when it falls behind, and waits until all
of it arrived. Models are not sent: they go to MLflow at the end of a search. The last line is one
JSON object.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from results.trial import Trial, TrialState
from search.tracking import Tracker
from tests.benchmarks.common import finish, say
from tests.benchmarks.growth import epoch_of
from tests.search.test_tracking import DATA, Server, info_of
from trainable.config import TrialConfig

NAME = "tracking"


def main(argv: list[str] | None = None) -> None:
    """Send trials to a server, and say how many a second it took."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{NAME}", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--trials", type=int, default=200)
    add("--epochs", type=int, default=5)
    args = parser.parse_args(argv)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "120"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        folder = Path(scratch)
        server = Server(folder)
        server.start()
        try:
            tracker = Tracker(server.uri, info_of(folder), say)
            tracker.start(DATA, [])
            start_s, start_cpu_s = time.monotonic(), time.process_time()
            for number in range(args.trials):
                tracker.update(_complete(number, args.epochs))
            has_arrived = tracker.close("FINISHED", [], within_s=3600.0)
            seconds = time.monotonic() - start_s
            cpu_s = time.process_time() - start_cpu_s
        finally:
            server.stop()
    finish(
        {
            "benchmark": NAME,
            "trials_per_s": args.trials / seconds,
            "driver_cpu_s_per_trial": cpu_s / args.trials,
            "has_arrived": has_arrived,
            "trials": args.trials,
            "epochs": args.epochs,
        }
    )


def _complete(number: int, num_epochs: int) -> Trial:
    draw = random.Random(number)
    epochs = tuple(epoch_of(draw, n + 1) for n in range(num_epochs))
    return Trial(
        number=number, config=TrialConfig(alpha=draw.random()), state=TrialState.COMPLETE,
        is_baseline=False, epochs=epochs, best=epochs[-1], host="node", device="cpu",
    )  # fmt: skip


if __name__ == "__main__":
    main()
