"""What one trial trains: every key, its meaning and its limits."""

import copy
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from trainable.errors import ConfigError, nearest
from trainable.keys import TASKS as TASKS
from trainable.keys import Key, as_type, key, key_of, keys_of_scope, types_of, with_overrides
from trainable.keys import Task as Task
from trainable.parts import (
    AUGMENTS,
    HEADS,
    LOSSES,
    OF_SUPER,
    SCORES,
    needs_bank,
    needs_borrowed,
    read_from,
)

TASKS_OF_BRANCHES: dict[str, tuple[tuple[Task, ...], ...]] = {
    "two_heads": (TASKS,),
    "two_models": (("super",), ("sub",)),
}
"""The tasks of each branch, by architecture."""
ARCHITECTURES = tuple(TASKS_OF_BRANCHES)
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "one_cycle", "cosine")
LEFT_OUT = ("features", "train", "none")
BEST = "best"
"""As novelty_score: the one that is best on the images that choose."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One backbone with the heads on top of it. `two_heads` has one, `two_models` has two."""

    tasks: tuple[Task, ...]
    backbone: str
    image_size: int
    fine_tune: str
    lr: float
    head_lr: float
    heads: tuple[str, ...]
    """Type of each task's head, in the order of `tasks`."""


@dataclass(frozen=True, kw_only=True)
@with_overrides
class TrialConfig:
    """A flat, validated configuration. The defaults are the paper's setting of approach A,
    on the embedded backbone.

    Raises:
        ConfigError: A value out of range, or keys that do not go together.
    """

    architecture: str = key(
        "two_heads",
        "two_heads: one backbone, two heads. two_models: a backbone and a head for each task.",
        choices=lambda: ARCHITECTURES,
    )
    backbone: str = key(
        "efficientnet_lite0",
        """A registered backbone, or any timm name; or several, joined by +: their features stand
        side by side, and fine_tune is full or frozen.""",
        scope="branch",
    )
    image_size: int = key(
        64, "Side in pixels that images are resized to.", scope="branch", limits=(32, 224)
    )
    head: str = key("linear", "What gives the logits.", scope="head", choices=lambda: HEADS)
    fine_tune: str = key(
        "full",
        """full, frozen, or last_N: train the N last stages of the backbone. ResNet: 5 (stem, four
        layers). EfficientNet: stem, blocks, head. torchvision's ViT: embedding, layers, final norm.
        Other timm models: timm's own layer groups, see `backbones.layer_groups`.""",
        scope="branch",
        form=(r"full|frozen|last_[1-9]\d?", "full, frozen or last_N with N of 1 to 99"),
    )
    novel_images: int = key(
        5000,
        "Borrowed images in training. A smaller pool is used whole.",
        scope="branch",
        limits=(0, math.inf),
    )
    lr: float = key(1e-4, "Learning rate of what is trained.", scope="branch", limits=(1e-8, 10.0))
    head_lr: float | None = key(
        None,
        "Learning rate of the heads; null: the same as lr.",
        scope="branch",
        limits=(1e-8, 10.0),
    )
    weight_decay: float = key(
        1e-4,
        "Adam: L2 term in the gradient. AdamW: decoupled decay.",
        scope="branch",
        limits=(0.0, 10.0),
    )
    layer_decay: float = key(
        1.0,
        """Learning rate of each tuned stage as a share of that of the stage above it, the last one
        having lr (Clark et al., ICLR 2020); 1: the same for all. Stages are those that last_N
        counts; a timm model of another family has them under last_N alone.""",
        scope="branch",
        limits=(0.1, 1.0),
    )
    max_norm: float = key(
        0.0,
        """Norm that a step's gradient of a branch is scaled down to (Pascanu, Mikolov and Bengio,
        ICML 2013); 0: as it is.""",
        scope="branch",
        limits=(0.0, 1e6),
    )
    batch_size: int = key(64, "Images per optimizer step.", limits=(2, 65536))
    epochs: int = key(
        15,
        """Passes over the training pool; 0 evaluates the untrained heads. A branch with fewer than
        the trial stays as it is after them, on a schedule of its own.""",
        scope="branch",
        limits=(0, 99_999),
    )
    optimizer: str = key("adam", "What takes the steps.", choices=lambda: OPTIMIZERS)
    schedule: str = key(
        "constant",
        """constant; one_cycle (Smith and Topin, 2018; peak at lr); cosine, from lr to 0 without
        restarts (Loshchilov and Hutter, ICLR 2017).""",
        choices=lambda: SCHEDULES,
    )
    label_smoothing: float = key(
        0.0,
        "Share of the target spread over all outputs (Szegedy et al., CVPR 2016).",
        scope="head",
        limits=(0.0, 0.5),
    )
    mixup: float = key(
        0.0,
        """Beta parameter of mixup (Zhang et al., ICLR 2018); 0: off. A branch with a frozen part
        mixes its features (manifold mixup, Verma et al., ICML 2019).""",
        scope="branch",
        limits=(0.0, 10.0),
    )
    outlier_exposure: float = key(
        0.0,
        """Weight of a uniform target over the known subclasses for borrowed images, in place of the
        novel class (Hendrycks, Mazeika and Dietterich, ICLR 2019); 0: the novel class.""",
        limits=(0.0, 10.0),
    )
    near_novel: float = key(
        0.0,
        """Weight of blends of two images of one superclass but two subclasses, which the subclass
        head learns to call novel, or what outlier_exposure says (a branch with a frozen part blends
        its features); 0: off.""",
        limits=(0.0, 10.0),
    )
    ema: float = key(
        0.0,
        """Decay per step of the moving average of the weights that is evaluated and kept (Polyak
        and Juditsky, 1992); 0: the weights themselves.""",
        scope="branch",
        limits=(0.0, 0.9999),
    )
    compile: bool = key(
        False,
        """Whether what is trained passes through torch.compile: minutes first, then faster steps.
        On a CPU it needs a C++ compiler. Results differ from those without by rounding.""",
    )
    loss: str = key(
        "cross_entropy+interaction",
        "What is minimised: the sum of these loss terms.",
        choices=lambda: LOSSES,
        is_sum=True,
    )
    alpha: float = key(
        0.1,
        "Weight of the interaction loss of a branch with two heads.",
        limits=(0.0, 1000.0),
    )
    temperature: float = key(
        1.0,
        "Temperature of both distributions in the interaction loss.",
        limits=(0.01, 1000.0),
    )
    novelty_score: str = key(
        "msp",
        """How known an image looks, from logits or from features. Of a sum each part counts in
        deviations from its mean over the known images that choose the threshold. best: the best of
        all, but for sums, on the images that choose; it stands alone. sub_novelty_score may also
        have super_NAME: what the superclass has as NAME, by its own logits and features.""",
        scope="head",
        choices=lambda: (*SCORES, BEST),
        is_sum=True,
        sub_prefix=OF_SUPER,
    )
    tau_super: float | None = key(
        None, "Superclass threshold on the novelty score; null: calibrated."
    )
    tau_sub: float | None = key(None, "Subclass threshold on the novelty score; null: calibrated.")
    known_rejection_super: float | None = key(
        None,
        """Calibrate tau_super so that it calls at most this fraction of known images novel
        (conformal); null: for the highest harmonic mean. The bound is marginal: it holds on average
        over calibration images drawn anew, and not for each draw nor each class. It does not cover
        images that the head itself calls novel. A fraction f needs 1 / f - 1 known images; with
        fewer every image is accepted, and a line says so.""",
        limits=(0.001, 0.5),
    )
    known_rejection_sub: float | None = key(None, "The same for tau_sub.", limits=(0.001, 0.5))
    tau_sub_per_superclass: bool = key(
        False, "Calibrate tau_sub for each superclass that a subclass is predicted in, on its own."
    )
    couple_novel: bool = key(False, "A novel superclass implies a novel subclass.")
    restrict_sub: bool = key(False, "The subclass is one of the predicted superclass.")
    pseudo_novel_fraction: float = key(
        0.15, "Fraction of the subclasses held out whole.", limits=(0.0, 0.5)
    )
    second_pseudo_novel_fraction: float = key(
        0.0,
        """Fraction of other subclasses held out whole that nothing is tuned on: they are reported
        apart (`unseen_sub_second`).""",
        limits=(0.0, 0.5),
    )
    left_out: str = key(
        "features",
        """How it is found out what a novel superclass would meet: each known one in turn is left
        out of heads, feature banks, thresholds and scores. A branch with a frozen backbone never
        saw it then. features: heads and banks of a tuned branch sit on its features, which did see
        it; train: all of it is trained once more for every superclass, at that many times the cost;
        none: borrowed images stand for novel superclasses, and promise too much.""",
        choices=lambda: LEFT_OUT,
    )
    val_fraction: float = key(
        0.10, "Fraction of each seen subclass held out for validation.", limits=(0.001, 0.5)
    )
    augment: str = key(
        "flip_rotate",
        "How training images are changed at random.",
        scope="branch",
        choices=lambda: AUGMENTS,
    )
    match_resolution: float = key(
        0.0,
        """Probability that a known training image is scaled down to a borrowed one's size and up
        again, so that being coarse is not what novel means.""",
        scope="branch",
        limits=(0.0, 1.0),
    )
    feature_views: int = key(
        2,
        """Views per image whose frozen features are cached: the image as it is, and augmented ones;
        each epoch draws one of them.""",
        scope="branch",
        limits=(1, 32),
    )
    seed: int = key(
        0,
        "Fixes the pools, the initial heads, the order and the augmentation.",
        limits=(0, 2**31 - 1),
    )

    if TYPE_CHECKING:  # overrides are made by their rule, which no type checker follows

        def __init__(self, **values: Any) -> None: ...

    def __post_init__(self) -> None:
        given = vars(self)
        for name, (about, types, default) in _KEYS.items():
            value = given[name]
            if type(value) is type(default) and value == default:
                continue  # most are: thousands of trials are read at once
            value = as_type(name, value, types)
            object.__setattr__(self, name, value)
            if value is not None:
                about.check(name, value)
        for task in TASKS:
            for name in BRANCH_KEYS if self.architecture != "two_models" else ():
                if given[f"{task}_{name}"] is not None:
                    raise ConfigError(
                        f"`{task}_{name}` needs architecture 'two_models', but architecture is "
                        f"{self.architecture!r}: drop it, or set `{name}` for the shared branch"
                    )
            self._check_decision(task)
        self._check_epochs()
        self._check_loss()

    def _check_epochs(self) -> None:
        """Check that some branch learns in every epoch, and none is to learn after the last one."""
        own = {task: self.of(task, "epochs") for task in TASKS}
        if (longest := max(own.values())) != self.epochs:
            raise ConfigError(
                f"`epochs` must be that of the branch with most, but got {self.epochs}, with "
                f"{own['super']} of the superclass branch and {own['sub']} of the subclass branch: "
                f"set epochs={longest}"
            )

    def _check_loss(self) -> None:
        """Check that the terms of `loss` are several, and something to learn from."""
        terms = self.loss_terms()
        for term in terms:
            if terms.count(term) > 1:
                raise ConfigError(f"`loss` names {term!r} twice, in {self.loss!r}: drop one")
        if terms == ["interaction"]:
            has_both = TASKS in TASKS_OF_BRANCHES[self.architecture]
            if not has_both or self.alpha == 0:
                why = "alpha is 0" if has_both else f"{self.architecture} has no branch with both"
                raise ConfigError(
                    f"`loss` interaction alone teaches nothing, as {why}: write "
                    "cross_entropy+interaction, or cross_entropy"
                )

    def _check_decision(self, task: Task) -> None:
        """Check the keys that say when `task` answers novel."""
        score = self.of(task, "novelty_score")
        parts = score.split("+")
        for part in parts:
            if parts.count(part) > 1 or (part == BEST and len(parts) > 1):
                raise ConfigError(
                    f"`{self._set_as(task, 'novelty_score')}` is a sum of different scores, or "
                    f"{BEST} alone, but got {score!r}: drop {part}"
                )
            whose, _ = read_from(task, part)
            if whose != task:
                self._check_of_super(self._set_as(task, "novelty_score"), part)
            if part != BEST and needs_borrowed(part) and self.of(whose, "novel_images") == 0:
                raise ConfigError(
                    f"`{self._set_as(task, 'novelty_score')}` {part} needs borrowed images, but "
                    f"{self._set_as(whose, 'novel_images')} is 0: take another score, or borrow "
                    "some"
                )
        tau, rejection = getattr(self, f"tau_{task}"), getattr(self, f"known_rejection_{task}")
        if tau is not None and not math.isfinite(tau):
            raise ConfigError(f"`tau_{task}` must be a finite number or null, but got {tau}")
        if tau is not None and (rejection is not None or score == BEST):
            other = f"known_rejection_{task}" if rejection is not None else "novelty_score best"
            raise ConfigError(f"`tau_{task}` fixes the threshold, and {other} chooses it: drop one")

    def _check_of_super(self, name: str, part: str) -> None:
        """Check a part of the subclass's novelty score that is one of the superclass."""
        own = part.removeprefix(OF_SUPER)
        if own == BEST:
            raise ConfigError(f"`{name}` {part}: {BEST} is no score, so name the one to take")
        if len(self.branches()) == 1 and needs_bank(own):
            raise ConfigError(
                f"`{name}` {part} is {own} in {self.architecture}, whose heads share their "
                f"features: write {own}"
            )

    @property
    def sub_reads_super(self) -> bool:
        """Whether the subclass's novelty score has a part that is the superclass's."""
        parts = self.of("sub", "novelty_score").split("+")
        return any(part.startswith(OF_SUPER) for part in parts)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration with `values` over the defaults.

        Raises:
            ConfigError: An unknown key (the message names the nearest known one) or a bad value.
        """
        for name in values:
            if name not in _KEYS:
                raise ConfigError(f"unknown key {name!r}{nearest(str(name), _KEYS) or _WHERE}")
        made = object.__new__(cls)
        vars(made).update({**_DEFAULTS, **values})  # a frozen class sets each by a call of its own
        made.__post_init__()
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return every key and value, ready for JSON."""
        return dict(vars(self))  # every value is one of JSON's own, none of them holds others

    def loss_terms(self) -> list[str]:
        """Return the names in `loss`."""
        return self.loss.split("+")

    def keys_of_loss(self) -> tuple[str, ...]:
        """Return which of alpha and temperature do something: for the interaction, or perhaps for
        a user's term.
        """
        others = {*self.loss_terms()} - {"cross_entropy", "class_balanced"}
        has_both = TASKS in TASKS_OF_BRANCHES[self.architecture]
        if not others or (others == {"interaction"} and not has_both):
            return ()
        is_off = others == {"interaction"} and self.alpha == 0
        return ("alpha",) if is_off else ("alpha", "temperature")

    def of(self, task: Task, key: str) -> Any:
        """Return the value of `key` for `task`: the override if there is one."""
        override = getattr(self, f"{task}_{key}")
        return getattr(self, key) if override is None else override

    def _set_as(self, task: Task, key: str) -> str:
        """Return the name under which the value of `key` for `task` was set."""
        override = f"{task}_{key}"
        return key if getattr(self, override) is None else override

    def for_branch(self, branch: Branch) -> Self:
        """Return the configuration with a branch's own values in place of those for both.

        It is not checked once more: the other branch's scores need not go with these values.
        """
        own = copy.copy(self)
        for name in BRANCH_KEYS:
            object.__setattr__(own, name, self.of(branch.tasks[0], name))
        return own

    def most_novel_images(self) -> int:
        """Return how many borrowed images are asked for: a branch with fewer has the first ones."""
        return max(int(self.of(task, "novel_images")) for task in TASKS)

    def branches(self) -> tuple[Branch, ...]:
        """Return what is trained: one branch with both tasks, or one branch for each."""
        return tuple(self._branch(tasks) for tasks in TASKS_OF_BRANCHES[self.architecture])

    def _branch(self, tasks: tuple[Task, ...]) -> Branch:
        task = tasks[0]
        lr = self.of(task, "lr")
        head_lr = self.of(task, "head_lr")
        return Branch(
            tasks=tasks,
            backbone=self.of(task, "backbone"),
            image_size=self.of(task, "image_size"),
            fine_tune=self.of(task, "fine_tune"),
            lr=lr,
            head_lr=lr if head_lr is None else head_lr,
            heads=tuple(self.of(each, "head") for each in tasks),
        )


DECISION_KEYS = (
    *(f"{task}novelty_score" for task in ("", "super_", "sub_")),
    "tau_super", "tau_sub", "known_rejection_super", "known_rejection_sub",
    "tau_sub_per_superclass", "couple_novel", "restrict_sub",
)  # fmt: skip
"""What is decided when all is trained."""
BRANCH_KEYS = keys_of_scope(TrialConfig, "branch")
HEAD_KEYS = keys_of_scope(TrialConfig, "head")
_WHERE = " (docs/config.md has all)"
_HINTS = typing.get_type_hints(TrialConfig)
_KEYS: dict[str, tuple[Key, tuple[type, ...], Any]] = {
    each.name: (key_of(TrialConfig, each.name), types_of(_HINTS[each.name]), each.default)
    for each in fields(TrialConfig)
}
"""What stands at each key, its types, and what it is unless it is given."""
_DEFAULTS = {name: default for name, (_, _, default) in _KEYS.items()}


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Return the values of ``KEY=VALUE`` strings; a value is JSON, or else the bare string.

    Raises:
        ConfigError: No ``=``, an unknown key, or two values of one key.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, but got {setting!r}")
        if name not in _KEYS:
            raise ConfigError(
                f"--set {setting}: unknown key {name!r}{nearest(name, _KEYS) or _WHERE}"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if repr(values.setdefault(name, value)) != repr(value):
            raise ConfigError(f"--set {given[name]} and --set {setting} contradict each other")
        given[name] = setting
    return values
