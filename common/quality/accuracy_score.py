"""The classification accuracy score: can a classifier learn from generated images alone?

Ravuri and Vinyals, "Classification Accuracy Score for Conditional Generative Models",
arXiv 1905.10887; here with the lenet classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.data.source import ImageSource, load_images
from common.errors import DataError
from common.quality.lenet import Progress, fit_lenet

IMAGES: Final = 10_000
"""Generated images that the classifier is trained on, in equal class shares."""


def accuracy_score(
    generated: Tensor,
    intended: NDArray[np.int64],
    real: Tensor,
    labels: NDArray[np.int64],
    *,
    seed: int = 1,
    progress: Progress | None = None,
) -> float:
    """Accuracy on real images of a classifier that was trained on generated ones alone.

    No real image takes part in training, and nothing is chosen by accuracy: the number of steps
    is set in advance and the last weights are tested, once.

    Args:
        generated: (m, C, S, S) uint8.
        intended: (m,) the classes that they were meant as, from 0.
        real: (n, C, S, S) uint8, best of a part that no client trains on.
        labels: (n,) classes in the same numbering.
        seed: of the classifier; equal seeds and images score equally on one machine.
        progress: told after each step of training.

    Raises:
        DataError: either side has no images, not one label each, or another shape.
    """
    for side, images, classes in (("generated", generated, intended), ("real", real, labels)):
        if not len(images) or len(images) != len(classes):
            raise DataError(f"{len(images)} {side} images with {len(classes)} labels")
    if generated.shape[1:] != real.shape[1:]:
        raise DataError(
            f"generated images are {tuple(generated.shape[1:])}, real ones {tuple(real.shape[1:])}"
        )
    outputs = int(max(intended.max(), labels.max())) + 1
    classifier = fit_lenet(generated, intended, outputs, seed, progress)
    return float((classifier.read(real) == labels).mean())


def score_model(
    draw: Callable[[NDArray[np.int64]], Tensor],
    source: ImageSource,
    image_size: int,
    channels: int,
    *,
    images: int = IMAGES,
    seed: int = 1,
    progress: Progress | None = None,
) -> float:
    """The accuracy score of a generator that draws classes on request.

    Args:
        draw: (m,) classes -> (m, channels, image_size, image_size) uint8 images meant as them.
        source: labelled real images, all of which test the classifier.
        image_size: side in pixels that they are brought to.
        channels: 1 or 3, likewise.
        images: to draw, in shares of the classes that differ by one image at most.
        seed: see `accuracy_score`, as is progress.
        progress: likewise.

    Raises:
        DataError: the real images have no labels or cannot be read.
    """
    if source.labels is None:
        raise DataError(f"the accuracy score needs labels, and {source.name} has none")
    real = load_images(source, np.arange(len(source)), image_size, channels)
    intended = np.arange(images) % (int(source.labels.max()) + 1)
    return accuracy_score(
        draw(intended), intended, real, source.labels, seed=seed, progress=progress
    )
