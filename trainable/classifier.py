"""A trained classifier on disk: weights, labels, thresholds, and what it answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from upath import UPath

from trainable.checkpoint import write_atomically
from trainable.config import Task, TrialConfig
from trainable.data import Data
from trainable.errors import DataError, WeightsError
from trainable.metrics import Outputs
from trainable.models import BranchModel
from trainable.novelty import acceptance, decide, novelty_score
from trainable.splits import Pools

MODEL_FILE, INFO_FILE, OUTPUTS_FILE = "model.safetensors", "model.json", "outputs.safetensors"
FORMAT = 1
KEYS = (
    "config", "superclasses", "subclasses", "subclass_of_output", "stored_size", "tau_super",
    "tau_sub", "self_contained", "frozen_fingerprints",
)  # fmt: skip
PREDICTION_BATCH = 256


def save_classifier(
    folder: UPath,
    config: TrialConfig,
    data: Data,
    pools: Pools,
    branches: Sequence[BranchModel],
    metrics: dict[str, float],
    *,
    self_contained: bool = False,
) -> None:
    """Write weights (safetensors) and everything else an answer needs (JSON) into `folder`.

    Args:
        folder: Created if need be; an older classifier in it is replaced.
        config: What was trained.
        data: Its labels are kept.
        pools: Which subclasses have an output.
        branches: The models, in the order of `config.branches()`.
        metrics: Kept as they are; `tau_super` and `tau_sub` are the thresholds.
        self_contained: Store frozen stages too, so that no pretrained weights are needed. Without
            it they are named by their fingerprint.
    """
    tensors: dict[str, torch.Tensor] = {}
    for number, model in enumerate(branches):
        state = model.state_dict() if self_contained else model.trained_state()
        tensors |= {f"{number}.{key}": t.detach().contiguous() for key, t in state.items()}
    info = {
        "format": FORMAT,
        "config": config.to_dict(),
        "superclasses": data.superclasses,
        "subclasses": data.subclasses,
        "subclass_of_output": pools.subclasses,
        "stored_size": data.images.shape[1],
        "tau_super": metrics["tau_super"],
        "tau_sub": metrics["tau_sub"],
        "metrics": metrics,
        "self_contained": self_contained,
        "frozen_fingerprints": [model.frozen_fingerprint for model in branches],
    }
    write_atomically(folder / MODEL_FILE, safetensors.torch.save(tensors))
    write_atomically(folder / INFO_FILE, json.dumps(info, indent=2).encode())


def save_outputs(folder: UPath, outputs: Outputs) -> None:
    """Write the validation outputs, from which every threshold and score can be evaluated."""
    tensors = {name: tensor.contiguous() for name, tensor in vars(outputs).items()}
    write_atomically(folder / OUTPUTS_FILE, safetensors.torch.save(tensors))


def load_outputs(folder: UPath) -> Outputs:
    """Return the validation outputs of the best epoch of the trial in `folder`."""
    return Outputs(**safetensors.torch.load((folder / OUTPUTS_FILE).read_bytes()))


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

    def __init__(self, info: dict[str, Any], branches: Sequence[BranchModel]) -> None:
        self.info = info
        self.config = TrialConfig.from_dict(info["config"])
        self.superclasses: tuple[str, ...] = (*info["superclasses"], "novel")
        self.subclasses: tuple[str, ...] = (*info["subclasses"], "novel")
        self.stored_size: int = info["stored_size"]
        """Side in pixels that images had in training before each branch resized them."""
        self._subclass_of_output = torch.tensor(
            [*info["subclass_of_output"], len(info["subclasses"])]
        )
        self._branches = branches

    @classmethod
    def load(cls, folder: UPath, weights: Path | None = None) -> "Classifier":
        """Return the classifier in `folder`; nothing in it is unpickled.

        Raises:
            DataError: No classifier there, or one of another format.
            WeightsError: Its weights are damaged, or its frozen backbone has other weights here.
        """
        info = _read_info(folder)
        config = TrialConfig.from_dict(info["config"])
        try:
            tensors = safetensors.torch.load((folder / MODEL_FILE).read_bytes())
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{folder / MODEL_FILE} cannot be read: {error}") from error
        num_classes: dict[Task, int] = {
            "super": len(info["superclasses"]) + 1,
            "sub": len(info["subclass_of_output"]) + 1,
        }
        branches = []
        for number, branch in enumerate(config.branches()):
            prefix = f"{number}."
            state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
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
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise WeightsError(
                    f"{folder / MODEL_FILE} does not fit its {INFO_FILE}: {reason}"
                ) from error
            branches.append(model.eval())
        return cls(info, branches)

    @torch.inference_mode()
    def predict(self, images_NHWC: torch.Tensor) -> Predictions:
        """Return the answers for square uint8 images (N, S, S, 3) of any size S."""
        logits: dict[Task, torch.Tensor] = {}
        for model in self._branches:
            parts = [
                model(model.encode(model.prepare(batch)))
                for batch in images_NHWC.split(PREDICTION_BATCH)
            ]
            for task in model.branch.tasks:
                logits[task] = torch.cat([part[task] for part in parts]).float().cpu()
        names = {task: self.config.of(task, "novelty_score") for task in logits}
        superclass, output = decide(
            logits["super"],
            logits["sub"],
            acceptance(logits["super"], names["super"]),
            acceptance(logits["sub"], names["sub"]),
            tau_super=self.info["tau_super"],
            tau_sub=self.info["tau_sub"],
            couple_novel=self.config.couple_novel,
        )
        return Predictions(
            superclass=superclass,
            subclass=self._subclass_of_output[output],
            super_score=novelty_score(logits["super"], names["super"]),
            sub_score=novelty_score(logits["sub"], names["sub"]),
        )


def _read_info(folder: UPath) -> dict[str, Any]:
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
    if info.get("format") != FORMAT:
        raise DataError(f"{file}: expected format {FORMAT}, but got {info.get('format')!r}")
    if missing := [key for key in KEYS if key not in info]:
        raise DataError(f"{file} is damaged: it lacks {', '.join(missing)}")
    return info
