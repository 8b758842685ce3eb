"""All that is checked before the first trial: data, backbones, pools and metrics."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from results.record import SearchRecord
from search.plan import PROTOCOL_KEYS, SearchError, incomparable
from search.space.space import NEEDS, Space
from trainable.config import TrialConfig
from trainable.data.dataset import Data, same_data
from trainable.data.splits import PSEUDO_NOVEL, SECOND, make_pools
from trainable.model import backbones
from trainable.train import left_out_lines, novel_shortage


def check_data(
    record: SearchRecord, data: Data, resume: bool, note: Callable[[str], None]
) -> SearchRecord:
    if resume and not same_data(record.data_fingerprint, data.fingerprint, note):
        raise incomparable("the data's fingerprint", record.data_fingerprint, data.fingerprint)
    return replace(record, data_fingerprint=data.fingerprint)


def check_samples(
    space: Space, data: Data, record: SearchRecord, note: Callable[[str], None]
) -> None:
    """Build every backbone and pool that the dry trials met, so that no trial fails on them.

    Downloads weights that are not there yet.
    """
    weights = Path(record.weights) if record.weights else None
    branches = {branch for config in space.samples for branch in config.branches()}
    for name, size, fine_tune in sorted(
        {(b.backbone, b.image_size, b.fine_tune) for b in branches}
    ):
        backbone = backbones.build(name, size, weights, fine_tune=fine_tune)
        backbones.boundary(fine_tune, len(backbone.stages))
    most = max(space.samples, key=TrialConfig.most_novel_images)
    if shortage := novel_shortage(most, make_pools(data, most)):
        note(shortage)
    for line in left_out_lines(space.samples, data):
        note(line)
    for metric in space.metrics:
        _check_metric(space, metric, data, note)
    for name in space.unused:
        note(f"parameter {name} changes no configuration: it only costs the sampler trials")


def _check_metric(space: Space, metric: str, data: Data, note: Callable[[str], None]) -> None:
    """Refuse a metric over held-out subclasses where these data have too few to hold out."""
    if (key := NEEDS.get(metric)) is None:
        return
    kind = SECOND if key.startswith("second") else PSEUDO_NOVEL
    by_protocol = {tuple(getattr(c, k) for k in PROTOCOL_KEYS): c for c in space.samples}
    has_any = [
        bool((pools.val_kind == kind).any())
        for pools in (make_pools(data, config) for config in by_protocol.values())
    ]
    if not any(has_any):
        raise SearchError(
            f"{metric} is over subclasses that `{key}` holds out, and of the "
            f"{len(data.subclasses)} here it holds out none: raise it, or take another metric"
        )
    if not all(has_any):
        note(f"trials whose `{key}` holds out no subclass will fail, as they have no {metric}")
