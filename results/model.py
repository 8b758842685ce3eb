"""The MLflow pyfunc model: uint8 images in, a table of answers out."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from upath import UPath

from trainable.classifier import Classifier

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


def _load_pyfunc(path: str) -> NovelClassifier:
    """Return the model in `path`; MLflow calls this by name, and nothing is unpickled."""
    return NovelClassifier(Classifier.load(UPath(path)))
