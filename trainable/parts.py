"""What a trial can be made of: a registry per kind of part, open to a user's own.

Nothing else lists them: the config's choices, the command lines' help, the tables of docs/config.md
and the contract tests all follow from here. What a part of each kind is, is said where the built-in
ones are; docs/extending.md adds some from a file.
"""

from __future__ import annotations

import importlib
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trainable.errors import ConfigError, chosen

if TYPE_CHECKING:
    from trainable.keys import Task
    from trainable.model.augment import Augmentation
    from trainable.model.backbones import BackboneMaker
    from trainable.model.heads import HeadMaker
    from trainable.model.losses import LossTerm
    from trainable.novelty.scores import Score

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a part beside itself."""

    source: str
    """Where it comes from: a paper, a package."""
    meaning: str
    """First paragraph of its docstring, in one line."""
    module: str
    """In which it is defined."""
    file: str | None
    """The user's file that brought it; null: it is built in."""
    digest: str = ""
    """Of all the user's files."""


class Registry(Mapping[str, T], Generic[T]):
    """The parts of one kind by their names: built-in ones first, in the order of their files."""

    def __init__(self, kind: str, key: str, *modules: str, reserved: str = "") -> None:
        """Name what registers the built-in parts, which is imported when somebody asks.

        Args:
            kind: In words.
            key: Of the config, whose choices they are.
            modules: In order.
            reserved: No name begins so; empty: each name may.
        """
        self.kind, self.key, self._reserved = kind, key, reserved
        self._modules, self._waiting = modules, list(modules)
        self._lock = threading.RLock()
        self._parts: dict[str, T] = {}
        self._about: dict[str, About] = {}

    def register(self, name: str, *, source: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates, which has a docstring, under `name`.

        Args:
            name: Small letters, digits and underscores.
            source: A paper, a package or the like.

        Raises:
            ConfigError: The name is taken or none, or there is no docstring.
        """

        def add(part: T) -> T:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ConfigError(
                    f"the name of a {self.kind} has small letters, digits and '_', but got {name!r}"
                )
            if self._reserved and name.startswith(self._reserved):
                raise ConfigError(
                    f"no name of a {self.kind} begins with {self._reserved}, but got {name!r}"
                )
            file, digest = _reading[-1] if _reading else (None, "")
            if not part.__module__.startswith("trainable."):
                if file is None:
                    raise ConfigError(
                        f"the {self.kind} {name!r} is registered by a file that nobody asked for "
                        "parts: name it in PARTS of the space file, or by --parts, and import it "
                        "nowhere"
                    )
                self._fill()
            else:
                file, digest = None, ""
            if name in self._parts:
                of = self._about[name].file or "noveltune"
                raise ConfigError(f"there is a {self.kind} {name!r} of {of}: take another name")
            if not (doc := inspect.getdoc(part)):
                raise ConfigError(f"the {self.kind} {name!r} has no docstring: say what it is")
            meaning = " ".join(doc.partition("\n\n")[0].split())
            self._parts[name] = part
            self._about[name] = About(
                source=source, meaning=meaning, module=part.__module__, file=file, digest=digest
            )
            return part

        return add

    def about(self, name: str) -> About:
        """Return what is known of the part `name`."""
        self._fill()
        return self._about[name]

    def named(self, name: str) -> T:
        """Return the part `name`.

        Raises:
            ConfigError: There is none.
        """
        return chosen(self, self.key, name)

    def file_of(self, name: str) -> str:
        """Return which content of which user's file brought the part; empty: it is built in."""
        self._fill()
        about = self._about.get(name)
        return "" if about is None or about.file is None else f"{about.file} {about.digest}"

    def forget_users(self) -> None:
        """Drop every part that a user's file brought."""
        for name in [name for name, about in self._about.items() if about.file]:
            del self._parts[name], self._about[name]

    def _fill(self) -> None:
        with self._lock:  # who comes second waits until all are there
            while self._waiting:
                importlib.import_module(self._waiting.pop(0))

    def __getitem__(self, name: str) -> T:
        self._fill()
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        # In the order of the files, whichever was imported first; tables and ties follow it.
        order = {module: place for place, module in enumerate(self._modules)}
        names = list(self._parts)
        return iter(sorted(names, key=lambda name: order.get(self._about[name].module, len(order))))

    def __len__(self) -> int:
        self._fill()
        return len(self._parts)


_reading: list[tuple[str, str]] = []
"""The user's file that is being read, if any, and the digest of all of them."""


@contextmanager
def reading(file: str, digest: str) -> Iterator[None]:
    """Let what is registered be a part of this user's file."""
    _reading.append((file, digest))
    try:
        yield
    finally:
        _reading.pop()


OF_SUPER = "super_"
"""Before a novelty score of the subclass: the superclass's own of that name."""

BACKBONES: Registry[BackboneMaker] = Registry("backbone", "backbone", "trainable.model.backbones")
HEADS: Registry[HeadMaker] = Registry("head", "head", "trainable.model.heads")
SCORES: Registry[Score] = Registry(
    "novelty score", "novelty_score", "trainable.novelty.scores.logits",
    "trainable.novelty.scores.neighbours", "trainable.novelty.scores.mahalanobis",
    reserved=OF_SUPER,
)  # fmt: skip
LOSSES: Registry[LossTerm] = Registry("loss term", "loss", "trainable.model.losses")
AUGMENTS: Registry[type[Augmentation]] = Registry(
    "augmentation", "augment", "trainable.model.augment"
)
REGISTRIES: tuple[Registry[Any], ...] = (BACKBONES, HEADS, SCORES, LOSSES, AUGMENTS)


def read_from(task: Task, score: str) -> tuple[Task, str]:
    """Return whose novelty score `task` reads under a name, and under which it is registered."""
    own = score.removeprefix(OF_SUPER)
    return (task, score) if own == score else ("super", own)


def needs_bank(score: str) -> bool:
    """Return whether a novelty score is of features, and so fitted to those of training images."""
    return hasattr(SCORES.named(score.removeprefix(OF_SUPER)), "fit")


def needs_borrowed(score: str) -> bool:
    """Return whether a novelty score, or a part of it, needs borrowed images to mean anything."""
    parts = (SCORES.named(part.removeprefix(OF_SUPER)) for part in score.split("+"))
    return any(getattr(part, "needs_borrowed", False) for part in parts)
