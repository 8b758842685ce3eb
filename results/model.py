"""The MLflow pyfunc model: images of any kind in, a table of answers out."""

import ast
import itertools
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from upath import UPath

from results.sent_images import decoded
from trainable.classifier import Classifier

_OURS = frozenset({"trainable", "results"})
_LOADER = "mlflow"
"""Loads the model, so it names itself, as the one of its three distributions that is needed."""
CODE_PATHS = [str(Path(__file__).parents[1] / package) for package in sorted(_OURS)]
"""Our packages, which travel with the model: it needs no installation of noveltune."""
INPUT_DTYPE, INPUT_SHAPE = np.dtype("object"), (-1,)
"""The one signature that MLflow lets images of several sizes through, and texts."""
OUTPUTS = {
    "superclass_index": "long",
    "subclass_index": "long",
    "superclass": "string",
    "subclass": "string",
    "super_score": "double",
    "sub_score": "double",
    "is_super_novel": "boolean",
    "is_sub_novel": "boolean",
}


def answers(classifier: Classifier, images_NHWC: torch.Tensor) -> pd.DataFrame:
    """Return one row per image with the columns of `OUTPUTS`.

    Args:
        classifier: A loaded classifier.
        images_NHWC: uint8 (N, S, S, 3), square RGB images of any size S.
    """
    predictions = classifier.predict(images_NHWC)
    return pd.DataFrame(
        {
            "superclass_index": predictions.superclass.numpy(),
            "subclass_index": predictions.subclass.numpy(),
            "superclass": [classifier.superclasses[i] for i in predictions.superclass.tolist()],
            "subclass": [classifier.subclasses[i] for i in predictions.subclass.tolist()],
            "super_score": predictions.super_score.numpy(),
            "sub_score": predictions.sub_score.numpy(),
            "is_super_novel": (predictions.superclass == len(classifier.superclasses) - 1).numpy(),
            "is_sub_novel": (predictions.subclass == len(classifier.subclasses) - 1).numpy(),
        }
    )


class NovelClassifier:
    """What `mlflow.pyfunc.load_model` gives calls to."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the answers for the images of a request: columns as in `OUTPUTS`.

        Args:
            images: See `decoded`.
            params: There are none.

        Raises:
            RequestError: An image that cannot be read.
        """
        pixels = decoded(images, self._classifier.stored_size)
        return answers(self._classifier, torch.from_numpy(pixels))


def requirements() -> list[str]:
    """Return the distributions that the model's code imports, with the versions in use here.

    MLflow's own guess lists only what it sees being imported while it loads a model.
    """
    names = {name.partition(".")[0] for name in _imports(__name__, set())} - {*_OURS, _LOADER}
    installed = metadata.packages_distributions()
    used = sorted({each for name in names for each in installed.get(name, ())})
    # A build's own label (2.15.0+cpu) is known to no registry.
    return [f"{each}=={metadata.version(each).partition('+')[0]}" for each in used]


def _imports(module: str, seen: set[str]) -> Iterator[str]:
    """Yield every name that `module` and what it imports of ours import, at the top or later."""
    path = Path(CODE_PATHS[0]).parent / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not file.exists():
        return
    seen.add(module)
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            yield name
            if name.partition(".")[0] in _OURS:
                for parent in itertools.accumulate(name.split("."), "{}.{}".format):
                    yield from _imports(parent, seen)


def _load_pyfunc(path: str) -> NovelClassifier:
    """Return the model in `path`; MLflow calls this by name, and nothing is unpickled.

    A user's parts that it has run: load only models that you trust.
    """
    return NovelClassifier(Classifier.load(UPath(path)))
