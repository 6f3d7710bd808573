"""How good generated images are, on named features.

A distance is comparable only on the same features, so each carries their name:
"FID (Inception)" is the published one, "FD (lenet)" and "FD (small)" are not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.labels import labels_in
from common.data.source import ImageSource, load_images, to_unit
from common.encoders.small import load_small
from common.errors import DataError
from common.model.sampler import Sampler
from common.quality.groups import class_distances, client_distances
from common.quality.inception import load_inception
from common.quality.lenet import Lenet, Progress, train_lenet
from common.quality.metrics import (
    NEIGHBOURS,
    Features,
    frechet_from_moments,
    kernel_distance_in_blocks,
    moments,
    neighbourhood,
)
from common.quality.result import Classified, Quality, ReadAsIntended, distance_name
from common.seeding import words

NAMES: Final = ("lenet", "small", "inception")
MANIFOLD_IMAGES: Final = 5000
"""At most so many images of each side enter the nearest-neighbour measures."""
_BATCH: Final = 500


class Evaluator:
    """Judges generated images against one set of real ones, whose features it keeps.

    Args:
        real: (n, C, S, S) uint8.
        labels: (n,) classes from 0, or None; "lenet" needs them.
        features: "lenet", "small" or "inception".
        parts: per client the positions of its images in `real`; by default nobody is told apart.
        seed: of the lenet classifier and of the choice of images.
        cache: a directory where a trained lenet classifier is kept.
        progress: told of the steps of its training.
        device: where features are computed.
        inception_weights: a file to read instead of the download.

    Raises:
        DataError: the features are unknown or cannot be had, the images are too few or not
            labelled one by one, or a part is empty or points elsewhere.
    """

    def __init__(
        self,
        real: Tensor,
        labels: NDArray[np.int64] | None,
        features: str,
        *,
        parts: Sequence[NDArray[np.int64]] | None = None,
        seed: int = 1,
        cache: Path | None = None,
        progress: Progress | None = None,
        device: str | torch.device = "cpu",
        inception_weights: Path | None = None,
    ) -> None:
        _enough(real, "real")
        _check_labels(len(real), labels, parts)
        self.distance_name = distance_name(features)
        self._name = features
        self._parts = parts
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

    def draw(
        self, model: Sampler, count: int, seed: int = 0
    ) -> tuple[Tensor, NDArray[np.int64] | None]:
        """Images of a model to judge, and the classes that they are meant as.

        A model that draws classes on request is asked for those of the real images in their
        shares, so that it is judged by its images and not by a mix that nobody asked it for.

        Args:
            model: whose classes are numbered as the real images' labels.
            count: images.
            seed: of their noise.

        Returns:
            (count, C, S, S) uint8; and (count,) classes, or None where the model draws no
            classes or the real images have no labels.

        Raises:
            DataError: no real image has a class that the model has learned.
        """
        if self._labels is None or not model.class_names:
            return model.sample(count, seed), None
        classes = self.classes_to_draw(count, model.learned)
        return model.sample(count, seed, classes), classes

    def classes_to_draw(self, count: int, among: Collection[int]) -> NDArray[np.int64]:
        """(count,) of these classes in the real images' shares, in mixed order.

        Raises:
            DataError: the real images have no labels, or none of these.
        """
        if self._labels is None or not (known := np.isin(self._labels, [*among])).any():
            raise DataError("the real images have none of the classes to draw")
        labels = np.sort(self._labels[known])
        at = (np.arange(count) + 0.5) / count * len(labels)
        order = words(count, self._seed, "classes-to-draw").argsort(kind="stable")
        classes: NDArray[np.int64] = labels[at.astype(np.int64)][order]
        return classes

    def evaluate(self, generated: Tensor, intended: NDArray[np.int64] | None = None) -> Quality:
        """Judge images.

        Args:
            generated: (m, C, S, S) uint8, of the real images' shape.
            intended: (m,) the classes that they were meant as, numbered as the real images'
                labels; None for a model that draws no class on request.

        Raises:
            DataError: the images are too few or of another shape, or not one known class each.
        """
        self._check_shape(generated)
        if intended is not None:
            self._check_intended(len(generated), intended)
        features = self._features(generated)
        by_class = by_client = None
        if intended is not None and self._labels is not None:
            by_class = class_distances(self._real, self._labels, features, intended)
            if self._parts is not None:
                by_client = client_distances(
                    self._real, self._labels, self._parts, features, intended
                )
        classified = read = None
        if self._lenet is not None and self._labels is not None:
            chances = self._chances(self._lenet, generated)
            classified = _classified(chances, self._labels, float(self._lenet.accuracy))
            read = None if intended is None else _read(chances, intended)
        return Quality(
            features=self._name,
            distance=frechet_from_moments(*self._moments, *moments(features)),
            kernel=kernel_distance_in_blocks(self._real, features, self._seed),
            neighbourhood=neighbourhood(self._some(self._real), self._some(features)),
            classified=classified,
            intended=read,
            by_class=by_class,
            by_client=by_client,
            generated=len(generated),
            real=len(self._real),
        )

    def distance(self, generated: Tensor) -> float:
        """The Frechet distance alone; arguments and errors as of `evaluate`."""
        self._check_shape(generated)
        return frechet_from_moments(*self._moments, *moments(self._features(generated)))

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
    def _chances(self, classifier: Lenet, generated: Tensor) -> Features:
        """(m, classes) the probability that the classifier gives each class."""
        batches = [classifier(x).softmax(1).cpu() for x in self._units(generated)]
        return torch.cat(batches).double().numpy()

    def _check_shape(self, generated: Tensor) -> None:
        _enough(generated, "generated")
        if tuple(generated.shape[1:]) != self._shape:
            raise DataError(
                f"generated images are {tuple(generated.shape[1:])}, real ones {self._shape}"
            )

    def _check_intended(self, count: int, intended: NDArray[np.int64]) -> None:
        if self._labels is None:
            raise DataError("intended classes need labelled real images to compare with")
        if intended.shape != (count,):
            raise DataError(f"{count} generated images with intended classes {intended.shape}")
        classes = int(self._labels.max()) + 1
        if not 0 <= int(intended.min()) <= int(intended.max()) < classes:
            raise DataError(f"intended classes must be 0 to {classes - 1}, as the real images' are")


def _classified(chances: Features, labels: NDArray[np.int64], accuracy: float) -> Classified:
    classes = chances.shape[1]
    shares = np.bincount(chances.argmax(1), minlength=classes) / len(chances)
    expected = np.bincount(labels, minlength=classes) / len(labels)
    return Classified(
        classifier_accuracy=accuracy,
        confidence=float(chances.max(1).mean()),
        shares=tuple(shares.tolist()),
        classes_covered=int(((shares >= expected / 10) & (shares > 0)).sum()),
    )


def _read(chances: Features, intended: NDArray[np.int64]) -> ReadAsIntended:
    right = chances.argmax(1) == intended
    of_classes = (right[intended == which] for which in range(chances.shape[1]))
    return ReadAsIntended(
        share=float(right.mean()),
        by_class=tuple(float(of.mean()) if len(of) else None for of in of_classes),
    )


def evaluator_of(
    source: ImageSource,
    count: int,
    image_size: int,
    channels: int,
    features: str,
    *,
    classes: Sequence[str] = (),
    parts: Sequence[NDArray[np.int64]] | None = None,
    **options: Any,
) -> Evaluator:
    """An evaluator on up to `count` images of a source, evenly spaced over it.

    Args:
        source: the real images.
        count: of them, at most.
        image_size: side in pixels that they are brought to.
        channels: 1 or 3, likewise.
        features: see `Evaluator`, as are the errors.
        classes: names of the classes 0, 1, ..., as the model has them; by default the source's
            own numbering, if it has labels at all.
        parts: per client positions in the source, of images that may be used or not.
        **options: those of `Evaluator`.
    """
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)
    images = load_images(source, indices, image_size, channels)
    known = labels_in(source, classes) if classes else source.labels
    labels = None if known is None else known[indices]
    if parts is not None:
        parts = [np.flatnonzero(np.isin(indices, part)) for part in parts]
    return Evaluator(images, labels, features, parts=parts, **options)


def _enough(images: Tensor, side: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"{side} images must be uint8 (n, channels, size, size)")
    if len(images) <= NEIGHBOURS:
        raise DataError(f"{len(images)} {side} images are too few; give more than {NEIGHBOURS}")


def _check_labels(
    count: int, labels: NDArray[np.int64] | None, parts: Sequence[NDArray[np.int64]] | None
) -> None:
    if labels is not None and (labels.shape != (count,) or labels.min() < 0):
        raise DataError(f"{count} real images need one label from 0 each")
    if parts is None:
        return
    if labels is None or not parts:
        raise DataError("distances of clients need clients and labelled images")
    for client, part in enumerate(parts):
        if not len(part):
            raise DataError(f"client {client} has no image among the {count}; give more images")
        if not 0 <= int(part.min()) <= int(part.max()) < count:
            raise DataError(f"client {client} has images that are not among the {count}")
