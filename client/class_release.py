"""The private release where labels are used: all classes' moments in one vector.

An image x of class y counts as the unit vector u(x) = g(x) / |g(x)| in block y of C blocks, and
as zero in the others; g is in `client/weighted.py`. Nothing in g is negative and c > 0, so u is
always defined, and two images' vectors are orthogonal if their classes differ and at no obtuse
angle if they agree: replacing one of n images, its label included, moves the mean over images by
at most sqrt(2) / n. Class shares need no release of their own: they are in the blocks' first
coordinates.

What comes out are weighted moments: dividing a block by its first coordinate gives the weighted
mean and second moment of its class, whose difference is a variance. Which classes there are is
read from the release too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.loss import Kind, Moments
from client.mechanisms import Calibration, check_delta
from client.noise import SIGMA_BITS, discrete_gaussian
from client.weighted import Scales
from common.accounting import gaussian_sigma
from common.errors import PrivacyError
from common.sections import PrivacyConfig

Released = NDArray[np.float64]
"""(C, 1 + 2 F) the noisy mean over all n images of u(x) in the block of its class."""
_BELOW_ONE: Final = 1 - 2.0**-30
"""Outweighs the rounding of float64 in a norm that must not exceed 1."""
_SURE: Final = 6.0
"""Classes whose weight is below so many standard deviations of its noise are left out."""
_ABOVE_NOISE: Final = 4.0
"""Likewise for the square of a block's norm, in standard deviations of that of noise alone."""


def calibrate_classes(privacy: PrivacyConfig, n: int) -> Calibration:
    """The one vector of all classes of n images: sigma = Delta * sigma_0, Delta = sqrt(2) / n.

    Raises:
        PrivacyError: delta is 1/n or more.
    """
    check_delta(privacy.delta, n)
    sensitivity = math.sqrt(2) / n
    noise = sensitivity * gaussian_sigma(privacy.epsilon, privacy.delta)
    return Calibration(privacy.epsilon, privacy.delta, (sensitivity,), (noise,))


def image_vectors(features: Sequence[Tensor], scales: Scales) -> Tensor:
    """(B, 1 + 2 F) u(x) of a batch, float64 on the CPU: of norm at most 1, nowhere negative.

    After the constant all layers' features, then all layers' squares.

    Raises:
        PrivacyError: features are negative or not finite, or their squares are not.
    """
    flat = torch.cat([layer.detach().flatten(1) for layer in features], dim=1).cpu().double()
    if not bool(torch.isfinite(flat).all()) or not bool((flat >= 0).all()):
        raise PrivacyError(
            "features are negative or not finite: the sensitivity would be unbounded"
        )
    first, second = scales.of_features()
    constant = torch.full((len(flat), 1), scales.constant, dtype=torch.float64)
    vectors = torch.cat([constant, flat * first, flat.square() * second], dim=1)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if not bool(torch.isfinite(norm).all()):
        raise PrivacyError("features are too large to square: the sensitivity would be unbounded")
    return vectors.mul_(_BELOW_ONE / norm)


def release_classes(
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    classes: int,
    calibration: Calibration,
    scales: Scales,
) -> Released:
    """The one private release of a client's images and their labels.

    Args:
        batches: features of the images, per layer (B, C, H, W), not negative; and labels (B,)
            int64 in [0, classes).
        classes: C, of the run and not of this client.
        calibration: from `calibrate_classes`, for as many images as the batches hold.
        scales: from `public_scales`.

    Raises:
        PrivacyError: the sensitivity would be unbounded, or images and labels are not as agreed.
    """
    n = round(math.sqrt(2) / calibration.sensitivities[0])
    grid = n * calibration.sigmas[0] / 2**SIGMA_BITS
    sums = torch.zeros((classes, scales.length), dtype=torch.int64)
    count = 0
    for features, labels in batches:
        if len(labels) != len(features[0]) or bool(((labels < 0) | (labels >= classes)).any()):
            raise PrivacyError("each image needs one label that the run knows")
        sums.index_add_(0, labels, image_vectors(features, scales).div_(grid).floor_().long())
        count += len(labels)
    if count != n:
        raise PrivacyError(f"noise was calibrated for {n} images, and there are {count}")
    # For classes of which there is no image too: a block without noise would say so.
    noise = discrete_gaussian(sums.numel()).reshape(sums.shape)
    return np.asarray((sums.numpy() + noise) * (grid / n), dtype=np.float64)


def class_moments(released: Released, sigma: float, scales: Scales) -> Moments:
    """Weighted moments of the classes that rise above the noise.

    Post-processing alone: means are cut off at 0, and the variance is the second moment less the
    squared mean, to which the square's expected noise is added back, cut off at 0.

    Raises:
        PrivacyError: no class does.
    """
    held, means, variances = [], [], []
    first, second = scales.of_features()
    length, features = scales.length, scales.features
    for label, block in enumerate(torch.from_numpy(released)):
        excess = float(block.square().sum()) - length * sigma**2
        if block[0] <= _SURE * sigma or excess <= _ABOVE_NOISE * sigma**2 * math.sqrt(2 * length):
            continue
        weight = block[0] / scales.constant
        mean = (block[1 : 1 + features] / first / weight).clamp_min(0)
        noise = sigma / first / weight
        variance = block[1 + features :] / second / weight - mean.square() + noise.square()
        held.append(label)
        means.append(mean.float())
        variances.append(variance.clamp_min(0).float())
    if not held:
        raise PrivacyError(
            "no class rises above the noise of the private release: a larger privacy.epsilon, a "
            "smaller encoder.pool or more images would help"
        )
    return Moments(torch.stack(means), torch.stack(variances), tuple(held), Kind.WEIGHTED, scales)
