"""What the benchmarks share: the data as both sides take it, clocks, and the last line."""

import argparse
import json
import os
import platform
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.plain_trial import Row, Spec
from trainable.config import TrialConfig
from trainable.data import synthetic
from trainable.data.dataset import Data, load_data
from trainable.data.layouts import read_known, read_pool
from trainable.data.sources import open_source
from trainable.data.splits import Pools, make_pools

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data" / "bird-dog-reptile.zip"
REAL_NOVEL = ROOT.parent / "shared" / "data" / "novel-images.zip"


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
        files = [str(known_folder / name) for name in read_known(known, say)[0].images]
        files += [str(pool_folder / name) for name in read_pool(pool, say).images]
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


def interleaved(
    num_images: int, sides: dict[str, Callable[[int], Any]], repeats: int
) -> dict[str, list[float]]:
    """Return each side's images per second, one epoch of each in turn, after a first one."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for epoch in range(repeats + 1):
        for side, train_epoch in sides.items():
            start_s = time.perf_counter()
            train_epoch(epoch + 1)
            synchronize()
            rate = num_images / (time.perf_counter() - start_s)
            say(f"{side}: {rate:.0f} images/s{'' if epoch else ' (to warm up, not counted)'}")
            if epoch:
                rates[side].append(rate)
    return rates


def synchronize() -> None:
    """Wait for what the GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
