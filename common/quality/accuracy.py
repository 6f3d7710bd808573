"""The classification accuracy score: can a classifier learn from generated images alone?

Ravuri and Vinyals, "Classification Accuracy Score for Conditional Generative Models",
arXiv 1905.10887; here with the lenet classifier.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.data.labels import labels_in
from common.data.source import ImageSource, load_images
from common.errors import ConfigError, DataError
from common.model.generator import balanced_labels
from common.model.sampler import Sampler
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
    model: Sampler,
    source: ImageSource,
    seed: int = 0,
    progress: Progress | None = None,
) -> float:
    """The accuracy score of a model that draws classes.

    Args:
        model: asked for IMAGES images of the classes that it has learned, in equal shares.
        source: labelled real images, all of which test the classifier.
        seed: of the generated images.
        progress: told after each step of training.

    Raises:
        ConfigError: the model draws no classes.
        DataError: the real images have no labels or others than the model's, or cannot be read.
    """
    drawn = balanced_labels(model.learned, IMAGES)
    if drawn is None:
        raise ConfigError("the accuracy score needs a model that draws classes")
    labels = labels_in(source, model.class_names)
    intended: NDArray[np.int64] = drawn.numpy()
    generated = model.sample(IMAGES, seed, intended)
    channels, size = generated.shape[1:3]
    real = load_images(source, np.arange(len(source)), size, channels)
    return accuracy_score(generated, intended, real, labels, progress=progress)
