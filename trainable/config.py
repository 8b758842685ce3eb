"""What one trial trains: every key, its meaning and its limits."""

import json
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from trainable.errors import ConfigError, nearest
from trainable.parts import AUGMENTS, HEADS, LOSSES, SCORES, needs_borrowed

Task = Literal["super", "sub"]
TASKS: tuple[Task, ...] = ("super", "sub")

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
"""As novelty_score: the one that is best on the calibration half."""

# Keys that hold for both branches, and which super_KEY or sub_KEY overrides for one.
BRANCH_KEYS = ("backbone", "image_size", "fine_tune", "lr", "head_lr")
# Keys that hold for both heads, and which super_KEY or sub_KEY overrides in either architecture.
HEAD_KEYS = ("head", "novelty_score")


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

    def describe(self) -> str:
        """Return what tells one branch from another, in a few words."""
        heads = "+".join(dict.fromkeys(self.heads))
        backbone = self.backbone if self.backbone != TrialConfig.backbone else ""
        words = (backbone, self.fine_tune, heads, f"{self.image_size} px", f"lr {self.lr:.1e}")
        return " ".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """A flat, validated configuration. The defaults are the paper's setting of approach A,
    on the embedded backbone.

    Raises:
        ConfigError: A value out of range, or keys that do not go together.
    """

    architecture: str = "two_heads"
    """two_heads: one backbone, two heads. two_models: a backbone and a head for each task."""

    backbone: str = "efficientnet_lite0"
    """efficientnet_lite0, efficientnet_lite2 (embedded), resnet18, resnet50, vit_b_16 (torchvision)
    or a timm name."""

    image_size: int = 64
    """Side in pixels that images are resized to, 32 to 224."""

    head: str = "linear"
    """linear, or cosine: s cos(x, w_c) with a learnt scale s."""

    fine_tune: str = "full"
    """full, frozen, or last_N: train the N last stages of the backbone. ResNet: 5 (stem, four
    layers). EfficientNet: stem, blocks, head. torchvision's ViT: embedding, layers, final norm.
    Other timm models: timm's own layer groups, see `backbones.layer_groups`."""

    novel_images: int = 5000
    """Borrowed images in training, 0 or more. A smaller pool is used whole."""

    lr: float = 1e-4
    """Learning rate of what is trained."""

    head_lr: float | None = None
    """Learning rate of the heads; null: the same as lr."""

    weight_decay: float = 1e-4
    """Adam: L2 term in the gradient. AdamW: decoupled decay."""

    batch_size: int = 64
    """Images per optimizer step."""

    epochs: int = 15
    """Passes over the training pool; 0 evaluates the untrained heads."""

    optimizer: str = "adam"
    """adam or adamw."""

    schedule: str = "constant"
    """constant; one_cycle (Smith and Topin, 2018; peak at lr); cosine, from lr to 0 without
    restarts (Loshchilov and Hutter, ICLR 2017)."""

    label_smoothing: float = 0.0
    """Share of the target spread over all outputs (Szegedy et al., CVPR 2016), 0 to 0.5."""

    mixup: float = 0.0
    """Beta parameter of mixup (Zhang et al., ICLR 2018), 0 to 10; 0: off. A branch with a frozen
    part mixes its features (manifold mixup, Verma et al., ICML 2019)."""

    outlier_exposure: float = 0.0
    """Weight of a uniform target over the known subclasses for borrowed images, in place of the
    novel class (Hendrycks, Mazeika and Dietterich, ICLR 2019), 0 to 10; 0: the novel class."""

    ema: float = 0.0
    """Decay per step of the moving average of the weights that is evaluated and kept (Polyak and
    Juditsky, 1992), 0 to 0.9999; 0: the weights themselves."""

    compile: bool = False
    """Whether what is trained passes through torch.compile: minutes first, then faster steps. On
    a CPU it needs a C++ compiler. Results differ from those without by rounding."""

    loss: str = "cross_entropy+interaction"
    """Loss terms whose sum is minimised, joined by +."""

    alpha: float = 0.1
    """Weight of the interaction loss of a branch with two heads, 0 or more."""

    temperature: float = 1.0
    """Temperature of both distributions in the interaction loss, above 0."""

    novelty_score: str = "msp"
    """How known an image looks: msp, max_logit, energy, gen (from logits); knn, knn_difference,
    rmds (from features); or best, the best of them on the calibration half."""

    tau_super: float | None = None
    """Superclass threshold on the novelty score; null: calibrated."""

    tau_sub: float | None = None
    """Subclass threshold on the novelty score; null: calibrated."""

    known_rejection_super: float | None = None
    """Calibrate tau_super so that it calls at most this fraction of known images novel (conformal,
    0.001 to 0.5); null: for the highest harmonic mean. The bound is marginal: it holds on average
    over calibration images drawn anew, and not for each draw nor each class. It does not cover
    images that the head itself calls novel. A fraction f needs 1 / f - 1 known images; with fewer
    every image is accepted, and a line says so."""

    known_rejection_sub: float | None = None
    """The same for tau_sub."""

    tau_sub_per_superclass: bool = False
    """Calibrate tau_sub for each superclass that a subclass is predicted in, on its own."""

    couple_novel: bool = False
    """A novel superclass implies a novel subclass."""

    restrict_sub: bool = False
    """The subclass is one of the predicted superclass."""

    pseudo_novel_fraction: float = 0.15
    """Fraction of the subclasses held out whole, 0 to 0.5."""

    second_pseudo_novel_fraction: float = 0.0
    """Fraction of other subclasses held out whole that nothing is tuned on: they are reported
    apart (`unseen_sub_second`), 0 to 0.5."""

    left_out: str = "features"
    """How it is found out what a novel superclass would meet: each known one in turn is left out of
    heads, feature banks, thresholds and scores. A branch with a frozen backbone never saw it then.
    features: heads and banks of a tuned branch sit on its features, which did see it; train: all of
    it is trained once more for every superclass, at that many times the cost; none: borrowed images
    stand for novel superclasses, and promise too much."""

    val_fraction: float = 0.10
    """Fraction of each seen subclass held out for validation, above 0 to 0.5."""

    augment: str = "flip_rotate"
    """none; flip_rotate: horizontal flip and rotation by up to 10 degrees; strong: after these two
    random ones of brightness, contrast, saturation, zoom, shift and erasing (in the manner of
    RandAugment, Cubuk et al., NeurIPS 2020)."""

    match_resolution: float = 0.0
    """Probability that a known training image is scaled down to a borrowed one's size and up
    again, so that being coarse is not what novel means, 0 to 1."""

    feature_views: int = 2
    """Views per image whose frozen features are cached, 1 to 32: the image as it is, and augmented
    ones; each epoch draws one of them."""

    seed: int = 0
    """Fixes the pools, the initial heads, the order and the augmentation."""

    super_backbone: str | None = None
    sub_backbone: str | None = None
    super_image_size: int | None = None
    sub_image_size: int | None = None
    super_fine_tune: str | None = None
    sub_fine_tune: str | None = None
    super_lr: float | None = None
    sub_lr: float | None = None
    super_head_lr: float | None = None
    sub_head_lr: float | None = None
    super_head: str | None = None
    sub_head: str | None = None
    super_novelty_score: str | None = None
    sub_novelty_score: str | None = None

    def __post_init__(self) -> None:
        for name, hint in _HINTS.items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), hint))
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        for task in TASKS:
            for key in BRANCH_KEYS:
                if self.architecture != "two_models" and getattr(self, f"{task}_{key}") is not None:
                    raise ConfigError(
                        f"`{task}_{key}` needs architecture 'two_models', but architecture is "
                        f"{self.architecture!r}: drop it, or set `{key}` for the shared branch"
                    )
            _check_choice(self._set_as(task, "head"), self.of(task, "head"), HEADS)
            self._check_decision(task)
            _check_range(self._set_as(task, "image_size"), self.of(task, "image_size"), 32, 224)
            _check_range(self._set_as(task, "lr"), self.of(task, "lr"), 1e-8, 10.0)
            if self.of(task, "head_lr") is not None:
                _check_range(self._set_as(task, "head_lr"), self.of(task, "head_lr"), 1e-8, 10.0)
            if not re.fullmatch(r"full|frozen|last_[1-9]\d?", self.of(task, "fine_tune")):
                raise ConfigError(
                    f"`{self._set_as(task, 'fine_tune')}` must be full, frozen or last_N with "
                    f"N of 1 to 99, but got {self.of(task, 'fine_tune')!r}"
                )
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("augment", self.augment, AUGMENTS)
        for term in self.loss_terms():
            _check_choice("loss", term, LOSSES)
        _check_choice("left_out", self.left_out, LEFT_OUT)
        _check_range("novel_images", self.novel_images, 0, math.inf)
        _check_range("weight_decay", self.weight_decay, 0.0, 10.0)
        _check_range("batch_size", self.batch_size, 2, 65536)
        _check_range("epochs", self.epochs, 0, 99_999)
        _check_range("alpha", self.alpha, 0.0, 1000.0)
        _check_range("temperature", self.temperature, 0.01, 1000.0)
        _check_range("pseudo_novel_fraction", self.pseudo_novel_fraction, 0.0, 0.5)
        _check_range("second_pseudo_novel_fraction", self.second_pseudo_novel_fraction, 0.0, 0.5)
        _check_range("val_fraction", self.val_fraction, 0.001, 0.5)
        _check_range("label_smoothing", self.label_smoothing, 0.0, 0.5)
        _check_range("mixup", self.mixup, 0.0, 10.0)
        _check_range("outlier_exposure", self.outlier_exposure, 0.0, 10.0)
        _check_range("ema", self.ema, 0.0, 0.9999)
        _check_range("match_resolution", self.match_resolution, 0.0, 1.0)
        _check_range("feature_views", self.feature_views, 1, 32)
        _check_range("seed", self.seed, 0, 2**31 - 1)

    def _check_decision(self, task: Task) -> None:
        """Check the keys that say when `task` answers novel."""
        score = self.of(task, "novelty_score")
        _check_choice(self._set_as(task, "novelty_score"), score, (*SCORES, BEST))
        if score != BEST and needs_borrowed(score) and self.novel_images == 0:
            raise ConfigError(
                f"`{self._set_as(task, 'novelty_score')}` {score} needs borrowed images, but "
                "novel_images is 0: take another score, or borrow some"
            )
        tau, rejection = getattr(self, f"tau_{task}"), getattr(self, f"known_rejection_{task}")
        if tau is not None and not math.isfinite(tau):
            raise ConfigError(f"`tau_{task}` must be a finite number or null, but got {tau}")
        if rejection is not None:
            _check_range(f"known_rejection_{task}", rejection, 0.001, 0.5)
        if tau is not None and (rejection is not None or score == BEST):
            other = f"known_rejection_{task}" if rejection is not None else "novelty_score best"
            raise ConfigError(f"`tau_{task}` fixes the threshold, and {other} chooses it: drop one")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration with `values` over the defaults.

        Raises:
            ConfigError: An unknown key (the message names the nearest known one) or a bad value.
        """
        for key in values:
            if key not in _HINTS:
                raise ConfigError(f"unknown key {key!r}{nearest(str(key), _HINTS)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return every key and value, ready for JSON."""
        return asdict(self)

    def loss_terms(self) -> list[str]:
        """Return the names in `loss`."""
        return self.loss.split("+")

    def of(self, task: Task, key: str) -> Any:
        """Return the value of `key` for `task`: the override if there is one."""
        override = getattr(self, f"{task}_{key}")
        return getattr(self, key) if override is None else override

    def _set_as(self, task: Task, key: str) -> str:
        """Return the name under which the value of `key` for `task` was set."""
        override = f"{task}_{key}"
        return key if getattr(self, override) is None else override

    def branches(self) -> tuple[Branch, ...]:
        """Return what is trained: one branch with both tasks, or one branch for each."""
        return tuple(self._branch(tasks) for tasks in TASKS_OF_BRANCHES[self.architecture])

    def describe(self) -> str:
        """Return what tells one configuration from another, in one line."""
        parts = [self.architecture]
        branches = {branch.tasks[0]: branch.describe() for branch in self.branches()}
        if len(set(branches.values())) == 1:
            parts.append(branches["super"])
        else:
            parts += [f"{task} {text}" for task, text in branches.items()]
        if TASKS in TASKS_OF_BRANCHES[self.architecture]:
            parts.append(f"α {self.alpha:.2g} T {self.temperature:.2g}")
        parts.append(f"{self.novel_images} novel")
        return ", ".join(parts)

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


_HINTS: dict[str, Any] = {
    field.name: typing.get_type_hints(TrialConfig)[field.name] for field in fields(TrialConfig)
}


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Return the values of ``KEY=VALUE`` strings; a value is JSON, or else the bare string.

    Raises:
        ConfigError: No ``=``, an unknown key, or two values of one key.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, but got {setting!r}")
        if key not in _HINTS:
            raise ConfigError(f"--set {setting}: unknown key {key!r}{nearest(key, _HINTS)}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if repr(values.setdefault(key, value)) != repr(value):
            raise ConfigError(f"--set {given[key]} and --set {setting} contradict each other")
        given[key] = setting
    return values


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the field's type; an int serves as a float, nothing else is converted."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed:
        names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
        raise ConfigError(f"`{name}` must be {names}, but got {value!r}")
    return value


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"`{name}` must be one of {', '.join(choices)}, "
            f"but got {value!r}{nearest(value, choices)}"
        )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"`{low:g} <= {name} <= {high:g}` must hold, but got {value}")
