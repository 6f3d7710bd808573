"""Which class of a run each image of a source belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.config import RunConfig
from common.data.datasets import CelebASource
from common.data.folder import FolderSource
from common.data.source import ImageSource
from common.errors import DataError


def class_labels(source: ImageSource, config: RunConfig) -> NDArray[np.int64] | None:
    """The labels that a run draws images by.

    Returns:
        (n,) positions in the run's classes; None where it ignores labels.

    Raises:
        DataError: the images have no labels, or classes that are not the run's.
    """
    classes = config.classes
    if not classes:
        return None
    if isinstance(source, CelebASource):
        return source.combinations(config.data.attributes)
    if isinstance(source, FolderSource):
        return source.labels_by(classes)
    if source.labels is None:
        raise DataError(
            f"{source.name} has no labels, and this run draws classes: {', '.join(classes)}"
        )
    if foreign := [name for name in source.class_names if name not in classes]:
        raise DataError(
            f"{source.name} has the class {foreign[0]}; those of this run are {', '.join(classes)}"
        )
    return np.array([classes.index(name) for name in source.class_names])[source.labels]


def split_by(source: ImageSource, config: RunConfig) -> NDArray[np.int64] | int:
    """What `partition` cuts a source by: its classes, its own labels, or its length."""
    labels = class_labels(source, config)
    if labels is None:
        labels = source.labels
    return len(source) if labels is None else labels
