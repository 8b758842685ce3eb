"""What the benchmarks share: the data as both sides take it, our search and the plain one."""

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch

from tests.benchmarks.plain import Row, Spec
from trainable import synthetic
from trainable.config import TrialConfig
from trainable.data import Data, _course_root, _read_course, _read_pool, load_data
from trainable.sources import open_source
from trainable.splits import Pools, make_pools

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data" / "bird-dog-reptile.zip"
REAL_NOVEL = ROOT.parent / "shared" / "data" / "novel-images.zip"
_ENDED = re.compile(r"trial \d{5}  (COMPLETE|PRUNED|FAIL)")


@dataclass(frozen=True)
class Sources:
    """What `--data` and `--novel` take."""

    data: Path
    novel: Path


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks on images have."""
    made = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{name}", description=(description or "").splitlines()[0]
    )
    made.add_argument("--data", type=Path, help="course layout (default: the real images, if any)")
    made.add_argument("--novel", type=Path, help="borrowed images (default: those that go with it)")
    return made


def sources(args: argparse.Namespace, scratch: Path) -> Sources:
    """Return what is asked for; by default the real images, else built-in ones in `scratch`."""
    if args.data is not None:
        return Sources(args.data.resolve(), (args.novel or args.data / "novel_images").resolve())
    if REAL_DATA.exists():
        return Sources(REAL_DATA, REAL_NOVEL)
    return built_in(scratch / "synthetic")


def built_in(folder: Path, *, images_per_subclass: int = 32, novel_per_class: int = 200) -> Sources:
    """Write built-in images to `folder`."""
    synthetic.write(
        folder,
        images_per_subclass=images_per_subclass,
        novel_per_class=novel_per_class,
        test_per_class=1,
    )
    return Sources(folder, folder / "novel_images")


def load(given: Sources, config: TrialConfig, scratch: Path) -> tuple[Data, Pools]:
    """Return the data and pools of `config`, with a cache in `scratch`."""
    data = load_data(str(given.data), str(given.novel), scratch / "cache", note=say)
    return data, make_pools(data, config)


def plain_spec(
    given: Sources, config: TrialConfig, data: Data, pools: Pools, scratch: Path
) -> Spec:
    """Return the training and validation images of `config` as files, unpacked into `scratch`."""
    known_folder, pool_folder = _unpacked(given.data, scratch), _unpacked(given.novel, scratch)
    with open_source(known_folder) as known, open_source(pool_folder) as pool:
        root = _course_root(known)
        assert root is not None, "benchmarks take the course's layout"
        files = [str(known_folder / name) for name in _read_course(known, root).images]
        files += [str(pool_folder / name) for name in _read_pool(pool)[0]]
    assert len(files) == len(data.images)

    def rows(which: torch.Tensor) -> list[Row]:
        return [
            (files[row], int(pools.super_target[row]), int(pools.sub_target[row]))
            for row in which.tolist()
        ]

    return Spec(
        train=rows(pools.train),
        val=rows(pools.val),
        num_super=len(data.superclasses) + 1,
        num_sub=len(pools.subclasses) + 1,
        backbone=config.backbone,
        image_size=config.image_size,
        batch_size=config.batch_size,
    )


def _unpacked(source: Path, scratch: Path) -> Path:
    """Return a folder with what a zip holds, except the test images."""
    if source.is_dir():
        return source
    folder = scratch / "unpacked" / source.stem
    with zipfile.ZipFile(source) as archive:
        archive.extractall(
            folder, [n for n in archive.namelist() if "/test_images/" not in f"/{n}"]
        )
    return folder


@dataclass(frozen=True)
class OurSearch:
    """When a search of ours did what."""

    wall_s: float
    """The whole command, from its start to its exit."""
    trials_s: float
    """From the first trial's start, before there is a worker, to the last one's end."""
    ended_s: list[float]
    """When each trial ended, in seconds since the first one's start; ascending."""
    driver_s: list[float]
    """CPU seconds that the driver had used when it said that each trial ended."""
    cpu_s: float
    """CPU seconds of the driver, Ray and the workers until the last trial's end."""


def our_search(
    folder: Path,
    given: Sources,
    *,
    space: Path,
    trials: int,
    epochs: int,
    slots: int,
    cache: Path,
    arguments: Sequence[str] = (),
) -> OurSearch:
    """Run `python -m search.run` in `folder`, with one core per trial."""
    folder.mkdir(parents=True)
    command = [
        sys.executable, "-m", "search.run", "--space", str(space), "--json", "--name", "search",
        "--data", str(given.data), "--novel", str(given.novel), "--cache", str(cache),
        "--trials", str(trials), "--epochs", str(epochs), "--concurrency", str(slots),
        "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}", *arguments,
    ]  # fmt: skip
    driver_s, cpu_s = [], 0.0
    start_s, last = time.monotonic(), ""
    with subprocess.Popen(
        command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if _ENDED.match(line):
                driver = psutil.Process(process.pid)
                driver_s.append(driver.cpu_times().user + driver.cpu_times().system)
                if len(driver_s) == trials:
                    cpu_s = _cpu_s(driver)
            if line.startswith("trial "):
                say(f"  {line.rstrip()[:100]}")
            last = line
    wall_s = time.monotonic() - start_s
    summary = json.loads(last) if last.startswith("{") else {}
    if process.returncode or summary["trials"] != {"COMPLETE": trials}:
        raise RuntimeError(f"our search ended with {process.returncode}: {last}")
    study = optuna.load_study(study_name="search", storage=summary["paths"]["study"])
    starts = [t.datetime_start for t in study.trials if t.datetime_start is not None]
    ends = sorted(t.datetime_complete for t in study.trials if t.datetime_complete is not None)
    ended_s = [(end - min(starts)).total_seconds() for end in ends]
    return OurSearch(wall_s, ended_s[-1], ended_s, driver_s, cpu_s)


def plain_search(folder: Path, spec: Spec) -> dict[str, Any]:
    """Run the plain search in a process of its own; return what `plain.search` returns."""
    folder.mkdir(parents=True)
    spec_file, out, log = folder / "spec.json", folder / "out.json", folder / "log"
    spec_file.write_text(json.dumps(asdict(spec)))
    command = [sys.executable, "-m", "tests.benchmarks.plain"]
    with log.open("w") as log_file:
        code = subprocess.run(
            [*command, "--spec", str(spec_file), "--out", str(out)],
            cwd=folder, env=_environment(), stdout=log_file, stderr=log_file, check=False,
        ).returncode  # fmt: skip
    if code:
        raise RuntimeError(f"the plain search ended with {code}:\n{log.read_text()[-4000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def plain_starts_s(result: dict[str, Any], slots: int) -> list[float]:
    """Return how long each slot took from one trial's end to the next one's first batch, in s.

    A slot's first trial, which may wait for Ray's first worker, is left out.
    """
    ready = sorted(trial["ready_s"][0] for trial in result["trials"])
    ended = sorted(trial["now_s"][-1] for trial in result["trials"])
    return [r - e for r, e in zip(ready[slots:], ended, strict=False)]


def plain_epochs_s(result: dict[str, Any], clock: str = "") -> list[float]:
    """Return how long each epoch took, in seconds: on the wall, or of the CPU (`cpu_`)."""
    epochs = []
    for trial in result["trials"]:
        stamps = [trial[f"ready_{clock}s"][0], *trial[f"now_{clock}s"]]
        epochs += [b - a for a, b in itertools.pairwise(stamps)]
    return epochs


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of all that it started and that still runs."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def _environment() -> dict[str, str]:
    """Return this process's environment without what an import of ours told Ray and Tune."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return given | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    has_gpu = torch.cuda.is_available()
    return {
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def finish(result: dict[str, Any]) -> None:
    """Print the last line: one JSON object, with the machine."""
    say(json.dumps(result | {"machine": machine()}))
