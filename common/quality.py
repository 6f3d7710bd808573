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
from common.encoders.inception import load_inception
from common.encoders.lenet import Lenet, Progress, train_lenet
from common.encoders.small import load_small
from common.errors import DataError
from common.seeding import words

Features = NDArray[np.float64]

NAMES: Final = ("lenet", "small", "inception")
NEIGHBOURS: Final = 5
"""k of precision, recall, density and coverage, as Naeem et al. set it."""
MANIFOLD_IMAGES: Final = 5000
"""At most so many images of each side enter the nearest-neighbour measures."""
_BATCH: Final = 500
_BLOCK: Final = 1024


@dataclass(frozen=True)
class Neighbourhood:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


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


def evaluate(
    generated: Tensor,
    real: Tensor,
    labels: NDArray[np.int64] | None = None,
    features: str = "small",
    **options: Any,
) -> Quality:
    """One evaluation; arguments, options and errors as in `Evaluator`."""
    return Evaluator(real, labels, features, **options).evaluate(generated)


def moments(features: Features) -> tuple[Features, Features]:
    """(n, D) -> mean (D,) and unbiased covariance (D, D)."""
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(real: Features, generated: Features) -> float:
    """Squared Frechet distance of the normal distributions fitted to both; (n, D), (m, D)."""
    return frechet_from_moments(*moments(real), *moments(generated))


def frechet_from_moments(
    mean_a: Features, cov_a: Features, mean_b: Features, cov_b: Features
) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)).

    Heusel et al., arXiv 1706.08500. The root's trace is taken from the symmetric product
    a^(1/2) b a^(1/2), whose eigenvalues are those of a b; covariances may be singular.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ cov_b @ root
    common = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    gap = mean_a - mean_b
    distance = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * common
    return max(float(distance), 0.0)


def neighbourhood(real: Features, generated: Features, k: int = NEIGHBOURS) -> Neighbourhood:
    """Precision, recall, density and coverage from k nearest neighbours.

    Args:
        real: (n, D), n > k.
        generated: (m, D), m > k.
        k: neighbours; a sample's radius is the distance to its k-th, itself not counted.

    Raises:
        DataError: either side has too few samples for k.
    """
    if min(len(real), len(generated)) <= k:
        raise DataError(f"{k} nearest neighbours need more than {k} images on each side")
    real_radii, generated_radii = _squared_radii(real, k), _squared_radii(generated, k)
    held = np.zeros(len(generated), dtype=np.int64)
    recalled = covered = 0
    for start in range(0, len(real), _BLOCK):
        distances = _squared_distances(real[start : start + _BLOCK], generated)
        inside = distances < real_radii[start : start + _BLOCK, None]
        held += inside.sum(axis=0)
        covered += int(inside.any(axis=1).sum())
        recalled += int((distances < generated_radii).any(axis=1).sum())
    return Neighbourhood(
        precision=float((held > 0).mean()),
        recall=recalled / len(real),
        density=float(held.mean() / k),
        coverage=covered / len(real),
    )


def _squared_radii(features: Features, k: int) -> Features:
    """(n,) squared distance of each sample to its k-th neighbour."""
    blocks = []
    for start in range(0, len(features), _BLOCK):
        distances = _squared_distances(features[start : start + _BLOCK], features)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = -1.0
        blocks.append(np.partition(distances, k, axis=1)[:, k])
    return np.concatenate(blocks)


def _squared_distances(a: Features, b: Features) -> Features:
    """(n, D), (m, D) -> (n, m)."""
    squares: Features = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(squares, 0.0, out=squares)


def _enough(images: Tensor, side: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"{side} images must be uint8 (n, channels, size, size)")
    if len(images) <= NEIGHBOURS:
        raise DataError(f"{len(images)} {side} images are too few; give more than {NEIGHBOURS}")
