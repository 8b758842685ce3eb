"""An epoch's measurements and its bookkeeping are apart, and together where they are stored."""

from hypothesis import given
from hypothesis import strategies as st

from trainable.epoch import Epoch

EPOCHS = st.builds(
    Epoch,
    number=st.integers(0, 999),
    metrics=st.dictionaries(st.sampled_from(["score", "tau_sub", "part_a.score"]), st.floats(0, 1)),
    seconds=st.none() | st.floats(0, 1e6),
    images_per_s=st.none() | st.floats(0, 1e6),
    peak_bytes=st.none() | st.integers(0, 2**40),
)


@given(EPOCHS)
def test_epoch_comes_back_as_it_was_stored(epoch: Epoch) -> None:
    assert Epoch.of(epoch.to_dict()) == epoch


def test_bookkeeping_is_not_among_the_measurements() -> None:
    stored = {"epoch": 2, "epoch_s": 0.5, "images_per_s": 80.0, "train_loss": 1.5, "score": 0.25}
    epoch = Epoch.of(stored)
    assert epoch.metrics == {"train_loss": 1.5, "score": 0.25}
    assert (epoch.number, epoch.seconds, epoch.images_per_s) == (2, 0.5, 80.0)
    assert epoch.peak_bytes is None, "of an earlier version, or on no GPU"
    assert epoch.to_dict() == stored
