"""A trained classifier on disk: weights, labels, thresholds, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from trainable.checkpoint import write_atomically
from trainable.config import TASKS, Task, TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import Pools
from trainable.errors import DataError, WeightsError
from trainable.model.branch import BranchModel
from trainable.model.inputs import FORWARD_BATCH
from trainable.novelty.bank import FeatureBank
from trainable.novelty.metrics import score_table
from trainable.novelty.rule import Response, Rule, averaged, decide, joined
from trainable.novelty.scores.sums import of_tasks
from trainable.novelty.thresholds import Fold, Outputs
from trainable.parts import REGISTRIES, needs_bank
from trainable.schema import CONFIG_STEPS, schema_of, stamp, upgraded
from trainable.user_parts import UserParts, current_parts

if TYPE_CHECKING:
    from upath import UPath

MODEL_FILE, INFO_FILE = "model.safetensors", "model.json"
OUTPUTS_FILE, TABLE_FILE = "outputs.safetensors", "scores.csv"
KEYS = (
    "config", "superclasses", "subclasses", "subclass_of_output", "super_of_output", "stored_size",
    "rule", "self_contained", "frozen_fingerprints",
)  # fmt: skip
SCORING_BATCH = 128
"""Images at once that are compared with a bank: of 32 each takes about twice as long."""
_BANK, _HEADS_OF_FOLDS = "bank.", "folds."
_LEFT_OUT = "left_out."
_SCORES = ("super_feature_scores", "sub_feature_scores")
_COLUMNS = ("knn", "knn_difference", "rmds")
"""In the order of version 0.1."""
_SHARED = ("in_part_a", "rows", "true_class")
"""What a fold's outputs have in common with the trial's."""


def save_classifier(
    folder: UPath,
    config: TrialConfig,
    data: Data,
    pools: Pools,
    branches: Sequence[BranchModel],
    metrics: dict[str, float],
    rule: Rule,
    banks: Sequence[FeatureBank | None],
    *,
    self_contained: bool = False,
    promise: Mapping[str, float] | None = None,
) -> None:
    """Write weights (safetensors) and everything else an answer needs (JSON) into `folder`.

    Args:
        folder: Created if need be; an older classifier in it is replaced.
        config: What was trained.
        data: Its labels are kept.
        pools: Which subclasses have an output.
        branches: The models, in the order of `config.branches()`; of an ensemble those of its first
            member, then those of the next. Its answers go by the means of what members say.
        metrics: Kept as they are.
        rule: Scores and thresholds by which it answers.
        banks: Of each branch; kept where the rule scores by features.
        self_contained: Store frozen stages too, so that no pretrained weights are needed. Without
            it they are named by their fingerprint.
        promise: What the search says of it; see `add_promise`.
    """
    tensors: dict[str, torch.Tensor] = {}
    for number, model in enumerate(branches):
        state = model.trained_state()
        if self_contained:  # nothing goes on from it, so nobody asks for what its folds trained
            state = _without_folds(model.state_dict())
        bank, names = banks[number], _bank_scores(model, rule)
        if bank is not None:
            state |= {f"{_BANK}{key}": tensor for key, tensor in bank.tensors(names).items()}
        tensors |= {f"{number}.{key}": t.detach().contiguous() for key, t in state.items()}
    info = {
        **stamp(),
        "config": config.to_dict(),
        "superclasses": data.superclasses,
        "subclasses": data.subclasses,
        "subclass_of_output": pools.subclasses,
        "stored_size": data.images.shape[1],
        "super_of_output": pools.super_of_sub,
        "rule": asdict(rule),
        "metrics": metrics,
        "promise": dict(promise or {}),
        "members": len(branches) // len(config.branches()),
        "self_contained": self_contained,
        "frozen_fingerprints": [model.frozen_fingerprint for model in branches],
    }
    if _is_of_users(config, rule):
        info["parts"] = current_parts().to_dict()
    write_atomically(folder / MODEL_FILE, safetensors.torch.save(tensors))
    write_atomically(folder / INFO_FILE, json.dumps(info, indent=2).encode())


def _is_of_users(config: TrialConfig, rule: Rule) -> bool:
    """Return whether a part of the classifier is a user's, whose files then travel with it."""
    scores = of_tasks({"super": rule.super_score, "sub": rule.sub_score}, TASKS)
    values = {*config.to_dict().values(), *config.loss_terms(), *scores}
    return any(
        registry.file_of(each) for registry in REGISTRIES for each in values if type(each) is str
    )


def add_promise(folder: UPath, promise: Mapping[str, float]) -> None:
    """Store with the classifier in `folder` what its trial promises: metrics and intervals."""
    info = read_info(folder) | {"promise": dict(promise)}
    write_atomically(folder / INFO_FILE, json.dumps(info, indent=2).encode())


def _bank_scores(model: BranchModel, rule: Rule) -> list[str]:
    """Return the scores of features by which the rule answers for the branch."""
    names = of_tasks({"super": rule.super_score, "sub": rule.sub_score}, model.branch.tasks)
    return [name for name in names if needs_bank(name)]


def load_weights(folder: UPath, branches: Sequence[BranchModel]) -> None:
    """Load what was trained into `branches` from the classifier that this process saved."""
    tensors = safetensors.torch.load((folder / MODEL_FILE).read_bytes())
    for number, model in enumerate(branches):
        model.load_trained_state(_of_branch(tensors, number)[0])


def _of_branch(
    tensors: dict[str, torch.Tensor], number: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the state, with the heads of its folds, and the bank of one branch."""
    prefix = f"{number}."
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    state = {k: t for k, t in own.items() if not k.startswith(_BANK)}
    return state, {k.removeprefix(_BANK): t for k, t in own.items() if k.startswith(_BANK)}


def _without_folds(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: each for key, each in state.items() if not key.startswith(_HEADS_OF_FOLDS)}


def save_outputs(folder: UPath, outputs: Outputs) -> None:
    """Write the validation outputs, from which every threshold and score can be evaluated.

    A score of features is stored by its name: as super_feature_scores.NAME.
    """
    tensors = _named_tensors(outputs)
    for fold in outputs.folds:
        own = _named_tensors(fold)
        own["exact"] = torch.tensor([task in fold.exact for task in TASKS])
        prefix = f"{_LEFT_OUT}{fold.superclass}."
        tensors |= {f"{prefix}{name}": each for name, each in own.items() if name not in _SHARED}
    write_atomically(folder / OUTPUTS_FILE, safetensors.torch.save(tensors))


def _named_tensors(outputs: Outputs) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, each in vars(outputs).items():
        if name in _SCORES:
            found |= {f"{name}.{score}": tensor for score, tensor in each.items()}
        elif isinstance(each, torch.Tensor):
            found[name] = each
    # Cloned, as two heads of one branch share their scores and the format knows no sharing.
    return {name: each.clone() for name, each in found.items()}


def _with_scores(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of `Outputs` that `_named_tensors` wrote.

    Version 0.1 wrote a column per score, NaN where it was not computed.
    """
    values: dict[str, Any] = {name: {} for name in _SCORES}
    for key, tensor in tensors.items():
        field, dot, score = key.partition(".")
        if dot:
            values[field][score] = tensor
        elif field in _SCORES:
            columns = zip(_COLUMNS, tensor.double().T, strict=True)
            values[field] = {k: each.contiguous() for k, each in columns if not each.isnan().any()}
        else:
            values[key] = tensor
    return values


def save_table(folder: UPath, outputs: Outputs, config: TrialConfig) -> None:
    """Write what every score, kind of threshold and decision option gives, see `score_table`."""
    import pandas as pd  # a third of a second, and where little is installed it is not there

    table = pd.DataFrame(score_table(outputs, config))
    write_atomically(folder / TABLE_FILE, table.to_csv(index=False).encode())


def load_outputs(folder: UPath) -> Outputs:
    """Return the validation outputs of the best epoch of the trial in `folder`.

    Raises:
        DataError: There are none, or they are damaged.
    """
    file = folder / OUTPUTS_FILE
    try:
        tensors = safetensors.torch.load(file.read_bytes())
        if "is_calibration" in tensors:  # as version 0.1 called it
            tensors["in_part_a"] = tensors.pop("is_calibration")
        # What version 0.1 wrote does not say what each image shows, and has no folds.
        tensors.setdefault("true_class", torch.full_like(tensors["rows"], -1))
        main = {name: each for name, each in tensors.items() if not name.startswith(_LEFT_OUT)}
        shared = {name: main[name] for name in _SHARED}
        return Outputs(**_with_scores(main), folds=_folds(tensors, shared))
    except (safetensors.SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _folds(tensors: dict[str, torch.Tensor], shared: dict[str, torch.Tensor]) -> tuple[Fold, ...]:
    """Return the folds that `save_outputs` wrote, in the order of their superclasses."""
    of_fold: dict[int, dict[str, torch.Tensor]] = {}
    for key, each in tensors.items():
        if key.startswith(_LEFT_OUT):
            number, _, name = key.removeprefix(_LEFT_OUT).partition(".")
            of_fold.setdefault(int(number), {})[name] = each
    result = []
    for superclass, own in sorted(of_fold.items()):
        are_exact = own.pop("exact").tolist()
        exact = tuple(task for task, is_exact in zip(TASKS, are_exact, strict=True) if is_exact)
        result.append(Fold(**_with_scores(own | shared), superclass=superclass, exact=exact))
    return tuple(result)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers for N images. Indices count as in the training data; novel is the last."""

    superclass: torch.Tensor
    """int64 (N,), 0 to K_super."""
    subclass: torch.Tensor
    """int64 (N,), 0 to K_sub."""
    super_score: torch.Tensor
    """float64 (N,), how known the superclass looks; compare with tau_super."""
    sub_score: torch.Tensor
    """float64 (N,), how known the subclass looks; compare with tau_sub."""


class Classifier:
    """A saved classifier, ready to answer."""

    def __init__(
        self,
        info: dict[str, Any],
        branches: Sequence[BranchModel],
        banks: Sequence[FeatureBank | None],
    ) -> None:
        self.info = info
        self.rule = _rule(info)
        self.config = TrialConfig.from_dict(info["config"])
        self.superclasses: tuple[str, ...] = (*info["superclasses"], "novel")
        self.subclasses: tuple[str, ...] = (*info["subclasses"], "novel")
        self.stored_size: int = info["stored_size"]
        """Side in pixels that images had in training before each branch resized them."""
        self._subclass_of_output = torch.tensor(
            [*info["subclass_of_output"], len(info["subclasses"])]
        )
        self._super_of_output = torch.tensor(info["super_of_output"])
        self._branches, self._banks = branches, banks
        num = len(self.config.branches())
        pairs = [*zip(branches, banks, strict=True)]
        self._members = [pairs[i : i + num] for i in range(0, len(pairs), num)]
        """Branches and their banks, of each model that is asked."""

    @classmethod
    def load(
        cls,
        folder: UPath,
        weights: Path | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Classifier:
        """Return the classifier in `folder`; nothing in it is unpickled.

        A user's parts that it has run: load only models that you trust.

        Args:
            folder: A trial's or a refit's.
            weights: See `backbones.build`.
            device: Where it computes; null: on the GPU where there is one.

        Raises:
            DataError: No classifier there, or one of another format.
            WeightsError: Its weights are damaged, or its frozen backbone has other weights here.
        """
        info = read_info(folder)
        _use_parts(info)
        config = TrialConfig.from_dict(info["config"])
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            tensors = safetensors.torch.load((folder / MODEL_FILE).read_bytes())
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{folder / MODEL_FILE} cannot be read: {error}") from error
        num_classes: dict[Task, int] = {
            "super": len(info["superclasses"]) + 1,
            "sub": len(info["subclass_of_output"]) + 1,
        }
        branches, banks = [], []
        for number, branch in enumerate(config.branches() * info.get("members", 1)):
            state, bank = _of_branch(tensors, number)
            state = _without_folds(state)
            pretrained = not info["self_contained"]
            model = BranchModel.build(
                branch, num_classes, config.seed, weights, pretrained=pretrained
            )
            expected = info["frozen_fingerprints"][number]
            if pretrained and model.frozen_fingerprint != expected:
                raise WeightsError(
                    f"{folder}: trained on weights of {branch.backbone} with the fingerprint "
                    f"{expected}, but here they have {model.frozen_fingerprint}: pass --weights"
                )
            try:
                if pretrained:
                    model.load_trained_state(state)
                else:
                    model.load_state_dict(state)
                names = _bank_scores(model, _rule(info))
                bank = {key: tensor.to(device) for key, tensor in bank.items()}
                is_needed = len(names) > 0
                banks.append(
                    FeatureBank.from_tensors(bank, names, model.num_features) if is_needed else None
                )
            except (ValueError, RuntimeError, TypeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise WeightsError(
                    f"{folder / MODEL_FILE} does not fit its {INFO_FILE}: {reason}"
                ) from error
            model = model.to(memory_format=torch.channels_last)  # as it was trained
            branches.append(model.to(device).eval())
        return cls(info, branches, banks)

    @torch.inference_mode()
    def predict(self, images_NHWC: torch.Tensor) -> Predictions:
        """Return the answers for square uint8 images (N, S, S, 3) of any size S."""
        response = self.response(images_NHWC)
        superclass, output = decide(response, self.rule)
        return Predictions(
            superclass=superclass,
            subclass=self.subclass_of(output),
            super_score=response.score("super", self.rule.super_score),
            sub_score=response.score("sub", self.rule.sub_score),
        )

    def subclass_of(self, output_N: torch.Tensor) -> torch.Tensor:
        """Return the subclasses of outputs of the subclass head, int64 (N,); novel is the last."""
        return self._subclass_of_output[output_N]

    @torch.inference_mode()
    def response(self, images_NHWC: torch.Tensor) -> Response:
        """Return what the heads say of square uint8 images (N, S, S, 3); classes are outputs.

        Only a batch of them is on the device at a time. All batches are padded to one size, so that
        the bits of an answer do not depend on which images were asked for with it.
        """
        _use_parts(self.info)  # another classifier may have been loaded since
        size = max(SCORING_BATCH, FORWARD_BATCH[self._branches[0].mean.device.type])
        return joined([self._said(images, size) for images in images_NHWC.split(size)])

    def _said(self, images_NHWC: torch.Tensor, size: int) -> Response:
        """Return what the members say of at most `size` images, in the mean."""
        pooled: dict[str, list[torch.Tensor]] = {}
        return averaged(
            [
                self._said_by(member, images_NHWC, size, pooled, f"member {number}")
                for number, member in enumerate(self._members)
            ]
        )

    def _said_by(
        self,
        member: Sequence[tuple[BranchModel, FeatureBank | None]],
        images_NHWC: torch.Tensor,
        size: int,
        pooled: dict[str, list[torch.Tensor]],
        name: str,
    ) -> Response:
        """Return what the heads of a member say of at most `size` images.

        Args:
            member: Its branches with their banks.
            images_NHWC: The images.
            size: See `response`.
            pooled: Features of these images that were made already, to which its own are added.
            name: Its own.
        """
        logits: dict[Task, torch.Tensor] = {}
        scores: dict[Task, dict[str, torch.Tensor]] = {}
        num = len(images_NHWC)
        for number, (model, bank) in enumerate(member):
            # Two frozen branches of one backbone make the same features: once is enough.
            branch = model.branch
            which = f"{branch.backbone} {branch.image_size} {model.frozen_fingerprint}"
            which = which if model.is_frozen else f"{name} branch {number}"
            if which not in pooled:
                pooled[which] = _pooled(model, images_NHWC)
            answers = [model.classify(each) for each in pooled[which]]
            found: dict[str, torch.Tensor] = {}
            if bank is not None:
                whole = F.pad(torch.cat(pooled[which])[:num], (0, 0, 0, size - num))
                found = bank.scores(whole, _bank_scores(model, self.rule))
            for task in branch.tasks:
                logits[task] = torch.cat([each[task] for each in answers])[:num].cpu()
                scores[task] = {name: score.cpu()[:num] for name, score in found.items()}
        return Response(
            super_logits=logits["super"],
            sub_logits=logits["sub"],
            super_feature_scores=scores["super"],
            sub_feature_scores=scores["sub"],
            super_of_sub=self._super_of_output,
        )


def _pooled(model: BranchModel, images_NHWC: torch.Tensor) -> list[torch.Tensor]:
    """Return the pooled features of the images, in batches of which the last is padded."""
    size = FORWARD_BATCH[model.mean.device.type]
    padded = (
        F.pad(batch, (0, 0, 0, 0, 0, 0, 0, size - len(batch))) for batch in images_NHWC.split(size)
    )
    return [model.tuned(model.encode(model.prepare(each))) for each in padded]


def _use_parts(info: Mapping[str, Any]) -> None:
    """Register the user's parts that a classifier brings. They are code, and run here."""
    if info.get("parts"):
        UserParts.from_dict(info["parts"]).use()


def load_rule(folder: UPath) -> Rule:
    """Return the rule by which the classifier in `folder` answers.

    Raises:
        DataError: No classifier there, or one of another format.
    """
    return _rule(read_info(folder))


def _rule(info: dict[str, Any]) -> Rule:
    return Rule(**info["rule"] | {"tau_sub": tuple(info["rule"]["tau_sub"])})


def _info_to_2(info: dict[str, Any]) -> dict[str, Any]:
    if (form := info.pop("format", None)) != 2:
        raise ValueError(f"expected `schema`, or of version 0.1 `format` 2, but got {form!r}")
    config = upgraded(info.get("config", {}), 1, CONFIG_STEPS[:1])
    return {"promise": {}} | info | {"config": config}


_INFO_STEPS = (_info_to_2,)


def read_info(folder: UPath) -> dict[str, Any]:
    """Return what `save_classifier` wrote beside the weights of the classifier in `folder`.

    Raises:
        DataError: No classifier there, or one of another format.
    """
    file = folder / INFO_FILE
    try:
        info: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder} holds no {INFO_FILE}: expected a trial's folder or a refitted model"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if not isinstance(info, dict):
        raise DataError(f"{file} is damaged: expected an object, but got {info!r:.80}")
    try:
        info = upgraded(info, schema_of(info, str(file)), _INFO_STEPS)
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if missing := [key for key in KEYS if key not in info]:
        raise DataError(f"{file} is damaged: it lacks {', '.join(missing)}")
    return info
