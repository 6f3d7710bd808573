"""How good generated images are, on named features.

A Frechet distance is comparable only on the same features, so each carries their name:
"FID (Inception)" is the published one, "FD (lenet)" and "FD (small)" are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.source import ImageSource, load_images, to_unit
from common.encoders.small import load_small
from common.errors import DataError
from common.quality.inception import load_inception
from common.quality.lenet import Lenet, Progress, train_lenet
from common.quality.metrics import (
    NEIGHBOURS,
    Features,
    Neighbourhood,
    frechet_from_moments,
    moments,
    neighbourhood,
)
from common.seeding import words

NAMES: Final = ("lenet", "small", "inception")
MANIFOLD_IMAGES: Final = 5000
"""At most so many images of each side enter the nearest-neighbour measures."""
_BATCH: Final = 500


@dataclass(frozen=True)
class Classified:
    """What a classifier of the real images says about the generated ones.

    Attributes:
        classifier_accuracy: its own accuracy on real images held out from its training.
        confidence: mean probability of the class that it chooses.
        shares: share of the generated images per class.
        classes_covered: classes whose share is at least a tenth of that among real images.
    """

    classifier_accuracy: float
    confidence: float
    shares: tuple[float, ...]
    classes_covered: int


@dataclass(frozen=True)
class Quality:
    """One evaluation.

    Attributes:
        distance_name: such as "FD (lenet)"; never without the features' name.
        distance: the Frechet distance.
        neighbourhood: on the same features.
        classified: on "lenet" features only, else None.
        generated: images that were judged.
        real: images that they were held against.
    """

    distance_name: str
    distance: float
    neighbourhood: Neighbourhood
    classified: Classified | None
    generated: int
    real: int

    def as_dict(self) -> dict[str, Any]:
        """Flat and ready for JSON; the distance stands under its full name."""
        flat: dict[str, Any] = {self.distance_name: self.distance, **vars(self.neighbourhood)}
        if self.classified is not None:
            flat |= vars(self.classified)
        return {**flat, "generated": self.generated, "real": self.real}


class Evaluator:
    """Judges generated images against one set of real ones, whose features it keeps.

    Args:
        real: (n, C, S, S) uint8.
        labels: (n,) classes from 0, or None; "lenet" needs them.
        features: "lenet", "small" or "inception".
        seed: of the lenet classifier and of the choice of images.
        cache: a directory where a trained lenet classifier is kept.
        progress: told of the steps of its training.
        device: where features are computed.
        inception_weights: a file to read instead of the download.

    Raises:
        DataError: the features are unknown or cannot be had, or the images are too few.
    """

    def __init__(
        self,
        real: Tensor,
        labels: NDArray[np.int64] | None,
        features: str,
        *,
        seed: int = 1,
        cache: Path | None = None,
        progress: Progress | None = None,
        device: str | torch.device = "cpu",
        inception_weights: Path | None = None,
    ) -> None:
        _enough(real, "real")
        self.distance_name = "FID (Inception)" if features == "inception" else f"FD ({features})"
        self._seed = seed
        self._device = torch.device(device)
        self._lenet: Lenet | None = None
        self._labels = labels
        if features == "lenet":
            if labels is None:
                raise DataError('features "lenet" need labelled images; use "small"')
            self._lenet = train_lenet(real, labels, seed, cache, progress).to(self._device)
            self._embed: Callable[[Tensor], Tensor] = self._lenet.features
        elif features == "small":
            # Without gradients, oneDNN is twice as fast on this layout.
            encoder = load_small(pool=1).to(self._device)
            encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._embed = lambda x: torch.cat([f.flatten(1) for f in encoder(x)], dim=1)
        elif features == "inception":
            self._embed = load_inception(self._device, inception_weights)
        else:
            raise DataError(f"unknown features {features!r}; known are {', '.join(NAMES)}")
        self._shape = tuple(real.shape[1:])
        self._real = self._features(real)
        self._moments = moments(self._real)

    def evaluate(self, generated: Tensor) -> Quality:
        """Judge images.

        Args:
            generated: (m, C, S, S) uint8, of the real images' shape.

        Raises:
            DataError: the images are too few or of another shape.
        """
        _enough(generated, "generated")
        if tuple(generated.shape[1:]) != self._shape:
            raise DataError(
                f"generated images are {tuple(generated.shape[1:])}, real ones {self._shape}"
            )
        features = self._features(generated)
        return Quality(
            distance_name=self.distance_name,
            distance=frechet_from_moments(*self._moments, *moments(features)),
            neighbourhood=neighbourhood(self._some(self._real), self._some(features)),
            classified=self._classified(generated),
            generated=len(generated),
            real=len(self._real),
        )

    @torch.no_grad()
    def _features(self, images: Tensor) -> Features:
        return np.concatenate([self._embed(x).cpu().double().numpy() for x in self._units(images)])

    def _units(self, images: Tensor) -> Iterator[Tensor]:
        for start in range(0, len(images), _BATCH):
            yield to_unit(images[start : start + _BATCH].to(self._device))

    def _some(self, features: Features) -> Features:
        if len(features) <= MANIFOLD_IMAGES:
            return features
        order = words(len(features), self._seed, "evaluation-subset").argsort(kind="stable")
        return features[np.sort(order[:MANIFOLD_IMAGES])]

    @torch.no_grad()
    def _classified(self, generated: Tensor) -> Classified | None:
        if self._lenet is None or self._labels is None:
            return None
        classifier = self._lenet
        chances = torch.cat([classifier(x).softmax(1).cpu() for x in self._units(generated)])
        classes = chances.shape[1]
        shares = np.bincount(chances.argmax(1).numpy(), minlength=classes) / len(generated)
        expected = np.bincount(self._labels, minlength=classes) / len(self._labels)
        return Classified(
            classifier_accuracy=float(classifier.accuracy),
            confidence=float(chances.amax(1).double().mean()),
            shares=tuple(shares.tolist()),
            classes_covered=int(((shares >= expected / 10) & (shares > 0)).sum()),
        )


def evaluator_of(
    source: ImageSource, count: int, image_size: int, channels: int, features: str, **options: Any
) -> Evaluator:
    """An evaluator on up to `count` images of a source, evenly spaced over it.

    Args:
        source: the real images.
        count: of them, at most.
        image_size: side in pixels that they are brought to.
        channels: 1 or 3, likewise.
        features: see `Evaluator`, as are the errors.
        **options: those of `Evaluator`.
    """
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)
    images = load_images(source, indices, image_size, channels)
    labels = None if source.labels is None else source.labels[indices]
    return Evaluator(images, labels, features, **options)


def _enough(images: Tensor, side: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"{side} images must be uint8 (n, channels, size, size)")
    if len(images) <= NEIGHBOURS:
        raise DataError(f"{len(images)} {side} images are too few; give more than {NEIGHBOURS}")
