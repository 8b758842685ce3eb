"""A worker's messages arrive as they were sent, of every kind; nothing else is taken for one."""

import json
from typing import get_args

import pytest

from search.cluster.messages import (
    EpochDone,
    Failed,
    Finished,
    Message,
    Note,
    OutOfMemory,
    Started,
    from_wire,
    to_wire,
)
from trainable.epoch import Epoch

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


def test_every_kind_is_tried_here() -> None:
    assert {type(message) for message in MESSAGES} == {*get_args(Message)}


def test_message_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must be one of Started, .*, but is 'result'"):
        from_wire(["result", {}])
