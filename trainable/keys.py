"""What stands at a key of the config, once: its meaning, its limits and its scope."""

import dataclasses
import re
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from trainable.errors import ConfigError, nearest

Task = Literal["super", "sub"]
TASKS: tuple[Task, ...] = ("super", "sub")
Scope = Literal["both", "branch", "head"]
"""both: one value for the trial. branch, head: super_KEY and sub_KEY override it for one of them;
that of a branch where there are two (two_models), that of a head in every architecture."""

_C = TypeVar("_C", bound=type)


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is known of one key beside its type and default."""

    meaning: str
    scope: Scope = "both"
    limits: tuple[float, float] | None = None
    """Lowest and highest value."""
    choices: Callable[[], Collection[str]] | None = None
    """Called when somebody asks: some come from a registry."""
    is_override: bool = False
    is_sum: bool = False
    """Whether several choices may be joined by +."""
    sub_prefix: str = ""
    """May stand before a choice where a key is the subclass's alone."""
    form: tuple[str, str] | None = None
    """Regular expression, and the same in words."""

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError unless `value`, of the right type and not null, is allowed."""
        if self.choices is not None:
            prefix = self.sub_prefix if name.startswith("sub_") else ""
            for each in value.split("+") if self.is_sum else [value]:
                check_choice(name, each, self.choices(), prefix)
        if self.limits is not None and not self.limits[0] <= value <= self.limits[1]:
            low, high = self.limits
            raise ConfigError(f"`{low:g} <= {name} <= {high:g}` must hold, but got {value}")
        if self.form is not None and not re.fullmatch(self.form[0], value):
            raise ConfigError(f"`{name}` must be {self.form[1]}, but got {value!r}")


def key(default: Any, meaning: str, **facts: Any) -> Any:
    """Return a dataclass field with what stands at it; `facts` are those of `Key`."""
    about = Key(meaning=" ".join(meaning.split()), **facts)
    return field(default=default, metadata={"key": about})


def key_of(config: type, name: str) -> Key:
    """Return what stands at the key `name` of a config class."""
    found: Key = config.__dataclass_fields__[name].metadata["key"]  # type: ignore[attr-defined]
    return found


def with_overrides(cls: _C) -> _C:
    """Add super_KEY and sub_KEY, null by default, for every key of a branch or of a head.

    It comes before `dataclass`.
    """
    for scope in ("branch", "head"):
        for name in keys_of_scope(cls, scope):
            about = vars(cls)[name].metadata["key"]
            for task in TASKS:
                override = replace(
                    about, meaning=f"{name} of the {task}class {scope} alone", is_override=True
                )
                made = field(default=None, metadata={"key": override})
                setattr(cls, f"{task}_{name}", made)
                cls.__annotations__[f"{task}_{name}"] = cls.__annotations__[name] | None
    return cls


def keys_of_scope(cls: type, scope: str) -> tuple[str, ...]:
    """Return the keys of a scope that are no overrides, in their order."""
    own = getattr(cls, "__dataclass_fields__", vars(cls))
    found = {
        name: each.metadata["key"]
        for name, each in own.items()
        if isinstance(each, dataclasses.Field)
    }
    return tuple(
        name for name, about in found.items() if about.scope == scope and not about.is_override
    )


def types_of(hint: Any) -> tuple[type, ...]:
    """Return what a field may be by its type hint."""
    return typing.get_args(hint) or (hint,)


def as_type(name: str, value: Any, allowed: tuple[type, ...]) -> Any:
    """Return `value` as a type of the field's; an int serves as a float, nothing else is
    converted.
    """
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed:
        names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
        raise ConfigError(f"`{name}` must be {names}, but got {value!r}")
    return value


def check_choice(name: str, value: str, choices: Collection[str], prefix: str = "") -> None:
    """Raise ConfigError, with the nearest choice, unless `value` is one, or one after `prefix`."""
    if (own := value.removeprefix(prefix)) not in choices:
        others = f", or {prefix} and one of them" if prefix else ""
        raise ConfigError(
            f"`{name}` must be one of {', '.join(choices)}{others}, "
            f"but got {value!r}{nearest(own, choices)}"
        )
