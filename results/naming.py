"""Configurations named by what varies among them: what all have in common tells none apart."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from trainable.config import BRANCH_KEYS, HEAD_KEYS, TASKS, TrialConfig

NOT_A_CHOICE = ("seed", "compile")
"""Keys that say how a configuration is run and not what it is."""
_BY_TASK = (*BRANCH_KEYS, *HEAD_KEYS)
_DESCRIBED = (
    "architecture", "backbone", "image_size", "head", "fine_tune", "novel_images", "alpha",
    "temperature", "lr",
)  # fmt: skip
"""What is said of a configuration that stands alone."""
_WORDS = {
    "architecture": "", "backbone": "", "fine_tune": "", "novelty_score": "by", "alpha": "α",
    "temperature": "T",
}  # fmt: skip


def acting(config: TrialConfig, apart: Collection[str] = _BY_TASK) -> dict[str, Any]:
    """Return the keys and values of a configuration that do something, by name; nothing for null.

    Args:
        config: Whose.
        apart: Keys that stand as super_KEY and sub_KEY, as they act; of the others, which hold for
            both tasks, only KEY is there.
    """
    values = config.to_dict()
    for key in _BY_TASK:
        of_task = {f"{task}_{key}": config.of(task, key) for task in TASKS}
        for name in (key, *of_task):
            values.pop(name, None)
        values |= of_task if key in apart else {key: config.of("super", key)}
    for key in {"alpha", "temperature"} - {*config.keys_of_loss()}:
        values.pop(key)
    if not config.of("sub", "novel_images") and not config.near_novel:
        values.pop("outlier_exposure")
    return {key: value for key, value in values.items() if value is not None}


def acting_together(config: TrialConfig) -> dict[str, Any]:
    """Return what acts in one configuration: super_KEY and sub_KEY only where these differ."""
    return acting(
        config, [key for key in _BY_TASK if config.of("super", key) != config.of("sub", key)]
    )


def described(config: TrialConfig) -> str:
    """Return the main choices of a configuration that stands alone, in one line."""
    values = acting_together(config)
    if config.backbone == TrialConfig.backbone:
        values.pop("backbone", None)
    of_task = [(f"super_{key}", f"sub_{key}") for key in _DESCRIBED]
    order = [each for key, pair in zip(_DESCRIBED, of_task, strict=True) for each in (key, *pair)]
    return _in_words({key: values[key] for key in order if key in values})


class Names:
    """The short names of configurations that are shown together."""

    def __init__(self, configs: Iterable[TrialConfig | None]) -> None:
        known = {config for config in configs if config is not None}
        self._apart = [
            key for key in _BY_TASK if any(c.of("super", key) != c.of("sub", key) for c in known)
        ]
        found: dict[str, set[str]] = {}
        for config in known:
            for key, value in self.values(config).items():
                found.setdefault(key, set()).add(repr(value))
        # A key that some lack follows from another one, unless it has several values itself.
        varying = {key for key, values in found.items() if len(values) > 1}
        varying |= {key for key in found if key.startswith(("tau_", "known_rejection_"))
                    and any(key not in self.values(config) for config in known)}  # fmt: skip
        order = [
            each for key in TrialConfig().to_dict() for each in (key, f"super_{key}", f"sub_{key}")
        ]
        self.keys = tuple(
            key for key in dict.fromkeys(order) if key in varying and key not in NOT_A_CHOICE
        )
        """Those that differ, in the order of the configuration's keys."""

    def values(self, config: TrialConfig) -> dict[str, Any]:
        """Return what acts in `config`, under the keys that these names use."""
        return acting(config, self._apart)

    def telling(self, configs: Iterable[TrialConfig]) -> tuple[str, ...]:
        """Return which of `keys` tell some of the configurations from each other: those first that
        tell most of them, as a line that begins with these may be cut."""
        values = [self.values(config) for config in configs]
        found = {key: len({repr(each.get(key)) for each in values}) for key in self.keys}
        return tuple(sorted((key for key in found if found[key] > 1), key=lambda key: -found[key]))

    def name(self, config: TrialConfig | None, first: Sequence[str] = ()) -> str:
        """Return what tells `config` from the others, in one line.

        Args:
            config: One of them; null: nothing is known of it.
            first: Keys that are named before the others, in this order, where a line may be cut.
        """
        if config is None:
            return "no configuration"
        values, shown = self.values(config), dict[str, Any]()
        for key in dict.fromkeys((*first, *self.keys)):
            if key in values:
                shown |= {self._of_both(key, values): values[key]}
        return _in_words(shown) or described(config)

    def _of_both(self, key: str, values: Mapping[str, Any]) -> str:
        """Return the key without its task, where both vary and are alike in these values."""
        task, _, both = key.partition("_")
        pair = [f"{each}_{both}" for each in TASKS]
        is_alike = task in TASKS and all(each in self.keys for each in pair)
        is_alike = is_alike and repr(values.get(pair[0])) == repr(values.get(pair[1]))
        return both if is_alike else key

    def of(self, trials: pd.DataFrame) -> dict[int, str]:
        """Return the name of each trial, by number."""
        return {
            int(number): self.name(config)
            for number, config in zip(trials["number"], trials["config"], strict=True)
        }


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(_said(key, value) for key, value in values.items())


def key_in_words(key: str) -> str:
    """Return a key as pictures name it, in the words that configurations are named by."""
    return key.replace("novel_images", "borrowed_images").replace("_", " ")


def _said(key: str, value: Any) -> str:
    """Return a key and its value in a few words, such as `α 0.1` or `sub cosine head`."""
    task, _, rest = key.partition("_")
    prefix, key = (f"{task} ", rest) if task in TASKS else ("", key)
    words = _WORDS.get(key, key.replace("_", " "))
    if isinstance(value, bool):
        return f"{prefix}{'' if value else 'no '}{words}"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    if key in ("head", "novel_images", "image_size"):
        return f"{prefix}{text} {'borrowed' if key == 'novel_images' else words}".replace(
            "image size", "px"
        )
    return " ".join(word for word in (prefix.strip(), words, text) if word)
