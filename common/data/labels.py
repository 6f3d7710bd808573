"""Which class of a run each image of a source belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.catalogue import attribute_classes
from common.config import RunConfig
from common.data.datasets import CelebASource
from common.data.folder import FolderSource
from common.data.source import ImageSource
from common.errors import DataError


def class_labels(source: ImageSource, config: RunConfig) -> NDArray[np.int64] | None:
    """The labels that a run draws images by; None where it ignores labels.

    Raises:
        DataError: as `labels_in`.
    """
    return labels_in(source, config.classes) if config.classes else None


def labels_in(source: ImageSource, classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels in another numbering than the source's own.

    Args:
        source: the images.
        classes: names of the classes 0, 1, ...

    Returns:
        (n,) positions in `classes`.

    Raises:
        DataError: the images have no labels, or classes of other names.
    """
    if isinstance(source, CelebASource):
        attributes = tuple(classes[-1].split(", "))
        if attribute_classes(attributes) != tuple(classes):
            raise DataError(f"{source.name} has no classes {', '.join(classes)}")
        return source.combinations(attributes)
    if isinstance(source, FolderSource):
        return source.labels_by(classes)
    if source.labels is None:
        raise DataError(f"{source.name} has no labels for the classes {', '.join(classes)}")
    if foreign := [name for name in source.class_names if name not in classes]:
        raise DataError(
            f"{source.name} has the class {foreign[0]}, which is none of {', '.join(classes)}"
        )
    return np.array([classes.index(name) for name in source.class_names])[source.labels]


def split_by(source: ImageSource, config: RunConfig) -> NDArray[np.int64] | int:
    """What `partition` cuts a source by: its classes, its own labels, or its length."""
    labels = class_labels(source, config)
    if labels is None:
        labels = source.labels
    return len(source) if labels is None else labels
