"""Distances and neighbourhood measures between two sets of features; NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.seeding import words

Features = NDArray[np.float64]

NEIGHBOURS: Final = 5
"""k of precision, recall, density and coverage, as Naeem et al. set it."""
KERNEL_BLOCKS: Final = 10
_BLOCK: Final = 1024


@dataclass(frozen=True)
class Neighbourhood:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class KernelDistance:
    """A squared MMD: the mean over disjoint blocks of the images, and its standard error."""

    mean: float
    standard_error: float


def moments(features: Features, weights: Features | None = None) -> tuple[Features, Features]:
    """(n, D), weights (n,) or equal ones -> mean (D,) and unbiased covariance (D, D)."""
    mean = np.average(features, axis=0, weights=weights)
    return mean, np.atleast_2d(np.cov(features, rowvar=False, aweights=weights))


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


def kernel_distance(real: Features, generated: Features) -> float:
    """Unbiased estimate of the squared MMD with the kernel (x . y / D + 1)^3.

    Binkowski et al., arXiv 1801.01401 (KID, there on Inception features). Its expectation is 0
    where both sides have one distribution, whatever their numbers, so it may be negative.

    Args:
        real: (n, D), n > 1.
        generated: (m, D), m > 1.
    """
    within = _mean_of_pairs(real) + _mean_of_pairs(generated)
    return float(within - 2 * _kernel(real, generated).mean())


def kernel_distance_in_blocks(real: Features, generated: Features, seed: int) -> KernelDistance:
    """`kernel_distance` of up to ten pairs of blocks, each image in one block.

    Blocks that share no image are independent, so their spread gives an honest standard error.

    Args:
        real: (n, D), n > 3.
        generated: (m, D), m > 3.
        seed: of the order in which images are cut into blocks.

    Raises:
        DataError: either side has too few samples for two blocks.
    """
    blocks = min(KERNEL_BLOCKS, len(real) // 2, len(generated) // 2)
    if blocks < 2:
        raise DataError("a kernel distance needs at least 4 images on each side")
    orders = (
        words(len(side), seed, "kernel-blocks", which).argsort(kind="stable")
        for which, side in enumerate((real, generated))
    )
    pairs = zip(*(np.array_split(order, blocks) for order in orders), strict=True)
    values = np.array([kernel_distance(real[a], generated[b]) for a, b in pairs])
    return KernelDistance(float(values.mean()), float(values.std(ddof=1) / np.sqrt(blocks)))


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


def _kernel(a: Features, b: Features) -> Features:
    """(n, D), (m, D) -> (n, m)."""
    kernel: Features = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


def _mean_of_pairs(features: Features) -> float:
    """Mean of the kernel over all pairs of different samples."""
    n, kernel = len(features), _kernel(features, features)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


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
