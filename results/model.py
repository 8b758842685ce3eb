"""The MLflow pyfunc model: uint8 images in, a table of answers out."""

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

from trainable.classifier import Classifier

_OURS = frozenset({"trainable", "results"})
CODE_PATHS = [str(Path(__file__).parents[1] / package) for package in sorted(_OURS)]
"""Our packages, which travel with the model: it needs no installation of noveltune."""
INPUT_DTYPE, INPUT_SHAPE = np.dtype("uint8"), (-1, -1, -1, 3)
OUTPUTS = {
    "superclass_index": "long",
    "subclass_index": "long",
    "superclass": "string",
    "subclass": "string",
    "super_score": "double",
    "sub_score": "double",
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
        }
    )


class NovelClassifier:
    """What `mlflow.pyfunc.load_model` gives calls to."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the answers for square uint8 images (N, S, S, 3): columns as in `OUTPUTS`.

        Raises:
            ValueError: Images of another shape.
        """
        array = np.ascontiguousarray(np.asarray(images, dtype=INPUT_DTYPE))
        if array.ndim != 4 or array.shape[1] != array.shape[2] or array.shape[3] != 3:
            raise ValueError(f"expected square images (N, S, S, 3), but got {array.shape}")
        return answers(self._classifier, torch.from_numpy(array))


def requirements() -> list[str]:
    """Return the distributions that the model's code imports, with the versions in use here.

    MLflow's own guess lists only what it sees being imported while it loads a model.
    """
    names = {name.partition(".")[0] for name in _imports(__name__, set())} - _OURS
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
