"""What is sent arrives as it was sent, of every kind; nothing else is taken for a message."""

import json
from pathlib import Path
from typing import get_args

import pytest
from upath import UPath

from search.cluster.messages import (
    Assignment,
    EpochDone,
    Failed,
    Finished,
    Job,
    Message,
    Note,
    OutOfMemory,
    Started,
    from_wire,
    to_wire,
)
from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.user_parts import UserParts

EPOCH = Epoch(number=3, metrics={"score": 0.5}, seconds=1.5, images_per_s=20.0, peak_bytes=2**30)
MESSAGES: list[Message] = [
    Started(host="node", device="cpu"),
    EpochDone(epoch=EPOCH),
    Note(line="a line"),
    Finished(best=EPOCH),
    Failed(reason="the loss is nan"),
    OutOfMemory(reason="20 GiB"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_arrives_as_it_was_sent(message: Message) -> None:
    wire = to_wire(message)
    assert isinstance(wire, list), "Tune flattens dicts"
    assert from_wire(json.loads(json.dumps(wire))) == message


@pytest.mark.parametrize("weights", [None, Path("/weights/w.pt")])
def test_assignment_arrives_as_it_was_sent(weights: Path | None) -> None:
    job = Job(
        folder=UPath("memory://runs/a"), data="synthetic", novel="cifar100", fingerprint="v2",
        cache=Path("/cache"), weights=weights, metric="seen_sub", is_fast=False,
        parts=UserParts(files=("mine.py",), sources={"mine.py": "x = 1"}),
    )  # fmt: skip
    config = TrialConfig(lr=0.5).to_dict()
    assignment = Assignment(job=job, number=7, config=config, cpus=1.0, gpus=0.25)
    arrived = Assignment.from_wire(json.loads(json.dumps(assignment.to_wire())))
    assert arrived == assignment
    assert arrived.folder == UPath("memory://runs/a/trials/00007")
    assert TrialConfig.from_dict(arrived.config) == TrialConfig(lr=0.5)


def test_every_kind_is_tried_here() -> None:
    assert {type(message) for message in MESSAGES} == {*get_args(Message)}


def test_message_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must be one of Started, .*, but is 'result'"):
        from_wire(["result", {}])
