"""Does a search give the same trials, metrics and tables as at another commit?

`python -m tests.benchmarks.equal COMMIT` runs `full_ablation` on a small drawn data set, one trial
at a time, at COMMIT and as the files are here: half of its trials, and the others by a resume. For
a change that shall change nothing, COMMIT is the one before it. The last line is one JSON object;
the exit code is 1 where something differs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from tests.commands import ROOT, run
from tests.made_data import drawn

NOT_COMPARED = (
    "host", "node", "device", "gpu", "gpus", "reruns", "lost_nodes", "epoch_s", "images_per_s",
    "peak_bytes", "host_peak_bytes", "gpu_utilisation", "gpu_hours",
)  # fmt: skip
"""What differs from run to run; of commits old and new."""


def searched(tree: Path, folder: Path, data: Path, trials: int) -> pd.DataFrame:
    """Return the table of a search with the sources in `tree`, its second half resumed."""
    folder.mkdir()
    named = ["--name", "asked", "--concurrency", "1"]
    asked = [
        "--space", str(tree / "spaces/full_ablation.py"), "--data", str(data),
        "--novel", str(data / "novel_images"), "--cache", str(folder / "cache"),
        "--trials", str(trials // 2), "--epochs", "1", "--set", "image_size=32",
    ]  # fmt: skip
    for arguments in (asked, ["--resume", "--trials", str(trials)]):
        done = run(folder, "-m", "search.run", *named, *arguments, PYTHONPATH=str(tree))
        assert done.code == 0, done
    table = pd.read_csv(folder / "runs/asked/trials.csv").sort_values("number")
    return table.drop(columns=[each for each in NOT_COMPARED if each in table])


def main(argv: list[str] | None = None) -> int:
    """Run both, compare them and print the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.equal")
    parser.add_argument("commit")
    parser.add_argument("--trials", type=int, default=8)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="equal-") as scratch:
        root = Path(scratch)
        data, before = drawn(root / "data"), root / "before"
        git = ["git", "-C", str(ROOT), "archive", "-o", str(root / "before.tar"), args.commit]
        subprocess.run(git, check=True)
        shutil.unpack_archive(root / "before.tar", before)
        old = searched(before, root / "old", data, args.trials)
        new = searched(ROOT, root / "new", data, args.trials)
    shared = [name for name in old if name in new]
    differing = [name for name in shared if not old[name].equals(new[name])]
    only = sorted({*old} ^ {*new})
    print(json.dumps({"trials": len(new), "differing": differing, "in_one_alone": only}))
    return 1 if differing or len(old) != len(new) else 0


if __name__ == "__main__":
    sys.exit(main())
