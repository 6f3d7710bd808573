"""Frechet distances of parts of the images: class by class, and client by client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.quality.metrics import Features, frechet_from_moments, moments

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class GroupDistances:
    """Frechet distances of groups of images, or why there are none.

    Of few images a covariance is no estimate, and a Frechet distance is biased upwards, so every
    group needs more images than there are features, real and generated.

    Attributes:
        distances: one per group, None for a class that was not drawn; or None in all where one
            of the groups has too few images.
        fewest: images in the smallest group, on the side that has fewer of it.
        needed: images of each group on each side that would do.
    """

    distances: tuple[float | None, ...] | None
    fewest: int
    needed: int


@dataclass(frozen=True)
class _Group:
    """Real images of a group, and generated ones with the weight that each has in it."""

    real: Features
    generated: Features
    weights: Features | None = None


def class_distances(
    real: Features, labels: Labels, generated: Features, intended: Labels
) -> GroupDistances:
    """Real images of each class against generated images that were meant as this class.

    Args:
        real: (n, D).
        labels: (n,) classes from 0; their largest says how many classes there are.
        generated: (m, D).
        intended: (m,) classes in the same numbering; those that never occur are left out.
    """
    drawn = np.unique(intended)
    found = _distances([_Group(real[labels == c], generated[intended == c]) for c in drawn])
    if found.distances is None:
        return found
    distances: list[float | None] = [None] * (int(labels.max()) + 1)
    for which, distance in zip(drawn, found.distances, strict=True):
        distances[which] = distance
    return GroupDistances(tuple(distances), found.fewest, found.needed)


def client_distances(
    real: Features,
    labels: Labels,
    parts: Sequence[Labels],
    generated: Features,
    intended: Labels,
) -> GroupDistances:
    """Real images of each client against generated ones of its classes in its class shares.

    All generated images of a client's classes count, weighted so that each class has the share
    that it has among the client's real images. No client is compared with classes that it does
    not hold. A class that it holds and that was never drawn is missing from the generated side
    and raises the distance.

    Args:
        real: (n, D).
        labels: (n,) classes from 0.
        parts: per client positions in [0, n).
        generated: (m, D).
        intended: (m,) classes in the same numbering.
    """
    drawn = np.bincount(intended, minlength=int(labels.max()) + 1)
    groups = []
    for part in parts:
        held = np.bincount(labels[part], minlength=len(drawn))
        chosen = held[intended] > 0
        weights = held[intended[chosen]] / drawn[intended[chosen]]
        groups.append(_Group(real[part], generated[chosen], weights))
    return _distances(groups)


def _distances(groups: Sequence[_Group]) -> GroupDistances:
    fewest = min(min(len(group.real), len(group.generated)) for group in groups)
    needed = groups[0].real.shape[1] + 1
    if fewest < needed:
        return GroupDistances(None, fewest, needed)
    distances = (
        frechet_from_moments(*moments(g.real), *moments(g.generated, g.weights)) for g in groups
    )
    return GroupDistances(tuple(distances), fewest, needed)
