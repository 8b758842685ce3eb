"""What a search will cost: from one tiny trial of each kind, trained here."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from upath import UPath

from search.cluster.packing import kind_of
from trainable.checkpoint import save_checkpoint
from trainable.classifier import OUTPUTS_FILE, save_classifier, save_outputs
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import Pools, make_pools
from trainable.errors import reason_of
from trainable.model.branch import BranchModel
from trainable.novelty.metrics import evaluate
from trainable.novelty.thresholds import choose_rule
from trainable.objective import num_classes
from trainable.trainer import Trainer

MEASURE_S = 10.0
"""No further kind is measured after so long."""
TRAIN_IMAGES, VAL_IMAGES = 128, 96
"""About so many are in a tiny trial."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one kind of trial, on all the images."""

    features_s: float
    """Once, for all trials that share them: frozen features."""
    epoch_s: float
    around_s: float
    """Before the first epoch and after the last."""
    kept_bytes: int
    """That a trial leaves."""
    checkpoint_bytes: int
    """While it runs."""
    feature_bytes: int
    """In the cache, once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a search without pruning."""

    seconds: float
    kept_bytes: int
    feature_bytes: int
    num_kinds: int
    num_measured: int


def estimate(
    samples: Sequence[TrialConfig], data: Data, *, num_trials: int, slots: int, threads: int,
    weights: Path | None, is_fast: bool, note: Callable[[str], None],
) -> Estimate | None:  # fmt: skip
    """Return what a search of such trials takes; null where none could be measured.

    Args:
        samples: Configurations that it may meet, each as often as it is met.
        data: All the images.
        num_trials: How many it runs.
        slots: At once.
        threads: Each trial has.
        weights: See `backbones.build`.
        is_fast: See `train`.
        note: Gets a line for each kind that fails.
    """
    kinds = {kind_of(config): config for config in samples}
    costs: dict[str, Cost] = {}
    end_s = time.monotonic() + MEASURE_S
    order = [kind for kind, _ in Counter(map(kind_of, samples)).most_common()]
    frozen = next((kind for kind in order if _is_frozen(kinds[kind])), order[0])
    for kind in dict.fromkeys([order[0], frozen, *order]):  # features are what fills a cache
        if costs and time.monotonic() > end_s:
            break
        try:
            costs[kind] = _cost(
                kinds[kind], data, threads=threads, weights=weights, is_fast=is_fast
            )
        except Exception as error:  # noqa: BLE001 (whatever it is, a trial would have that reason)
            note(f"a trial of {kind} would fail: {reason_of(error)}")
    if not costs:
        return None
    measured = [config for config in samples if kind_of(config) in costs]
    share = num_trials / len(measured)
    trials_s = kept_bytes = 0.0
    for config in measured:
        cost = costs[kind_of(config)]
        trials_s += share * (cost.epoch_s * max(1, config.epochs) + cost.around_s)
        kept_bytes += share * cost.kept_bytes
    features_s, feature_bytes = dict[str, float](), dict[str, int]()
    for kind, cost in costs.items():
        if name := _features_of(kinds[kind]):
            features_s[name] = max(features_s.get(name, 0.0), cost.features_s)
            feature_bytes[name] = max(feature_bytes.get(name, 0), cost.feature_bytes)
    num_features = len({*map(_features_of, kinds.values())} - {""})
    once = num_features / max(1, len(features_s))
    running = slots * max(cost.checkpoint_bytes for cost in costs.values())
    return Estimate(
        seconds=(trials_s + once * sum(features_s.values())) / slots,
        kept_bytes=int(kept_bytes + running),
        feature_bytes=int(once * sum(feature_bytes.values())),
        num_kinds=len(kinds),
        num_measured=len(costs),
    )


def _cost(
    config: TrialConfig, data: Data, *, threads: int, weights: Path | None, is_fast: bool
) -> Cost:
    """Train and judge on a few images, and scale what that takes."""
    with tempfile.TemporaryDirectory() as scratch, _threads(threads):
        folder, cache = UPath(scratch) / "trial", Path(scratch) / "cache"
        cache.mkdir()
        config = replace(config, epochs=max(2, config.epochs))  # its schedule has room for two
        pools = make_pools(data, config)
        few = _few(pools)
        for branch in config.branches():  # reads or downloads weights, which are then at hand
            BranchModel.build(branch, num_classes(pools), config.seed, weights)
        clock, built_s = _Clock(), list[float]()
        for _ in range(2):  # the second has the features of the first
            trainer = Trainer(
                config, data, few, cache=cache, weights=weights, is_fast=is_fast, note=_no_note
            )
            built_s.append(clock.lap())
        metrics = trainer.train_epoch(1)
        train_s = clock.lap()
        trainer.train_epoch(2)
        train_s = min(train_s, clock.lap())  # warm by now
        outputs = trainer.outputs()
        outputs_s = clock.lap()
        trainer.outputs()
        outputs_s = min(outputs_s, clock.lap())  # likewise
        metrics |= evaluate(outputs, config)
        rule, banks = choose_rule(outputs, config), trainer.banks()
        save_classifier(folder, config, data, few, trainer.evaluated, metrics, rule, banks)
        save_outputs(folder, outputs)
        save_checkpoint(folder, 1, trainer.state())
        judge_s = clock.lap()
        sizes = {file.name: file.stat().st_size for file in Path(folder.path).iterdir()}
        feature_bytes = sum(f.stat().st_blocks * 512 for f in cache.rglob("*") if f.is_file())
    val_more = len(pools.val) / len(few.val)
    all_more = (len(pools.train) + len(pools.val)) / (len(few.train) + len(few.val))
    checkpoints = sum(size for name, size in sizes.items() if name.startswith("checkpoint"))
    outputs_bytes = sizes[OUTPUTS_FILE]
    return Cost(
        features_s=max(0.0, built_s[0] - built_s[1]) * all_more * _is_frozen(config),
        epoch_s=train_s * len(pools.train) / len(few.train) + outputs_s * val_more + judge_s,
        around_s=built_s[1] + outputs_s * val_more + judge_s,
        kept_bytes=int(sum(sizes.values()) - checkpoints + outputs_bytes * (val_more - 1)),
        checkpoint_bytes=2 * checkpoints,
        feature_bytes=int(feature_bytes * all_more),
    )


class _Clock:
    """Seconds since it was made, or since it was last asked."""

    def __init__(self) -> None:
        self._before_s = time.perf_counter()

    def lap(self) -> float:
        now_s = time.perf_counter()
        passed_s, self._before_s = now_s - self._before_s, now_s
        return passed_s


def _features_of(config: TrialConfig) -> str:
    """Return what names the frozen features that a trial takes, and others like it; or nothing."""
    frozen = {
        f"{each.backbone} {each.image_size}"
        for each in config.branches()
        if each.fine_tune == "frozen"
    }
    return ", ".join(sorted(frozen))


def _is_frozen(config: TrialConfig) -> bool:
    return any(branch.fine_tune == "frozen" for branch in config.branches())


def _no_note(_line: str) -> None:
    """Say nothing of a tiny trial."""


def _few(pools: Pools) -> Pools:
    """Return pools of a few images: of training spread over all, of validation of each kind."""
    train_every = max(1, len(pools.train) // TRAIN_IMAGES)
    val_every = max(1, len(pools.val) // VAL_IMAGES)
    kept = [
        rows[::val_every]
        for kind in pools.val_kind.unique()
        for part in (True, False)
        if len(rows := ((pools.val_kind == kind) & (pools.val_in_part_a == part)).nonzero()[:, 0])
    ]
    places = torch.cat(kept).sort().values
    return replace(
        pools, train=pools.train[::train_every], val=pools.val[places],
        val_kind=pools.val_kind[places], val_in_part_a=pools.val_in_part_a[places],
    )  # fmt: skip


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with so many threads, as a trial does."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
