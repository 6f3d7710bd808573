"""The private release of class-conditional training: every class's moments in one vector.

An image x of class y counts as the unit vector u(x) = g(x) / |g(x)| in block y of C blocks, and
as zero in the others. g(x) = (c, a_l f_l(x), b_l f_l(x)^2), l over the layers: a constant, the
features and their squares, each layer brought to a public scale. Nothing in g is negative and
c > 0, so u is always defined, and two images' vectors are orthogonal if their classes differ and
at no obtuse angle if they agree: replacing one of n images moves the mean over images by at most
sqrt(2) / n. Class shares need no release of their own: they are in the blocks' first coordinates.

What comes out are weighted moments: an image weighs 1 / |g(x)|, and dividing a block by its first
coordinate gives the weighted mean and second moment of its class, whose difference is a variance.
Generated images are weighted likewise before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from client.noise import SIGMA_BITS, discrete_gaussian
from common.accounting import gaussian_sigma
from common.config import PrivacyConfig
from common.data import to_unit
from common.encoders import FeatureEncoder
from common.errors import PrivacyError
from common.seeding import words

_BELOW_ONE: Final = 1 - 2.0**-30
_PICTURES: Final = 16
"""Public pictures at each smoothness."""
_SHARE: Final = 0.5
"""The constant c, beside features and squares whose root mean square is 1 together."""
_SURE: Final = 6.0
"""Classes whose weight is below so many standard deviations of its noise are left out."""


@dataclass(frozen=True)
class Scales:
    """What the coordinates of g are multiplied by; public, powers of two.

    Attributes:
        constant: c.
        first: (F,) a_l, repeated over the features of layer l.
        second: (F,) b_l, likewise.
    """

    constant: float
    first: Tensor
    second: Tensor


def public_scales(encoder: FeatureEncoder, shape: tuple[int, int, int]) -> Scales:
    """Scales at which each layer of public pictures has a root mean square near 1.

    The pictures are random grids of 2, 4, 8, ... cells a side, smoothed: seeded, the same for
    everyone, and no image of any data set. Powers of two, so that rounding in the encoder does not
    reach them.
    """
    channels, size, _ = shape
    pictures = []
    cells = 2
    while cells <= size:
        count = _PICTURES * channels * cells * cells
        drawn = words(-(-count // 8), 0, "public-pictures", cells).view(np.uint8)[:count]
        grid = torch.from_numpy(drawn.copy()).view(_PICTURES, channels, cells, cells).float()
        smooth = F.interpolate(grid, (size, size), mode="bilinear")
        pictures.append(smooth.round().clamp(0, 255).to(torch.uint8))
        cells *= 2
    with torch.no_grad():
        layers = [layer.flatten(1) for layer in encoder(to_unit(torch.cat(pictures)))]

    def scale(layer: Tensor) -> Tensor:
        rms = float(layer.double().square().mean().sqrt())
        power = 2.0 ** -round(math.log2(rms)) if rms > 0 else 1.0
        return torch.full((layer.shape[1],), power, dtype=torch.float64)

    first = torch.cat([scale(layer) for layer in layers])
    second = torch.cat([scale(layer.square()) for layer in layers])
    constant = 2.0 ** round(math.log2(_SHARE * math.sqrt(2 * len(first))))
    return Scales(constant, first, second)


def calibrate_classes(privacy: PrivacyConfig, n: int) -> tuple[float, float]:
    """(sensitivity, sigma) of the one vector of (C, 1 + 2 F): sqrt(2) / n, times sigma_0."""
    sensitivity = math.sqrt(2) / n
    return sensitivity, sensitivity * gaussian_sigma(privacy.epsilon, privacy.delta)


def image_vectors(features: Sequence[Tensor], scales: Scales) -> list[Tensor]:
    """u(x) of a batch, as float64 parts that lie side by side: (B, 1), then (B, F_l) of each layer.

    First all layers' features, then all layers' squares. Together of norm at most 1, not negative.

    Raises:
        PrivacyError: features are negative or not finite, or their squares are not.
    """
    flat = [layer.detach().flatten(1).double() for layer in features]
    if not all(bool(torch.isfinite(layer).all()) and bool((layer >= 0).all()) for layer in flat):
        raise PrivacyError(
            "features are negative or not finite: the sensitivity would be unbounded"
        )
    sizes = [layer.shape[1] for layer in flat]
    first, second = torch.split(scales.first, sizes), torch.split(scales.second, sizes)
    parts = [torch.full((len(flat[0]), 1), scales.constant, dtype=torch.float64)]
    parts += [layer * scale for layer, scale in zip(flat, first, strict=True)]
    parts += [layer.square() * scale for layer, scale in zip(flat, second, strict=True)]
    norm = torch.stack([part.square().sum(1) for part in parts]).sum(0).sqrt()
    if not bool(torch.isfinite(norm).all()):
        raise PrivacyError("features are too large to square: the sensitivity would be unbounded")
    by = (_BELOW_ONE / norm).unsqueeze(1)
    return [part * by for part in parts]


def release_classes(
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    classes: int,
    n: int,
    sigma: float,
    scales: Scales,
) -> NDArray[np.float64]:
    """(C, 1 + 2 F) the noisy mean over all n images of u(x) in the block of its class.

    Args:
        batches: features (B, C, H, W) per layer, and labels (B,) int64 in [0, classes).
        classes: C, of the run and not of this client.
        n: images, which is public.
        sigma: from `calibrate_classes`, for n images.
        scales: from `public_scales`.

    Raises:
        PrivacyError: the sensitivity would be unbounded, or images and labels are not as agreed.
    """
    grid = n * sigma / 2**SIGMA_BITS
    sums = torch.zeros((classes, 1 + 2 * len(scales.first)), dtype=torch.int64)
    count = 0
    for features, labels in batches:
        if len(labels) != len(features[0]) or bool(((labels < 0) | (labels >= classes)).any()):
            raise PrivacyError("each image needs one label that the run knows")
        parts = [(part / grid).floor().long() for part in image_vectors(features, scales)]
        sums.index_add_(0, labels, torch.cat(parts, dim=1))
        count += len(labels)
    if count != n:
        raise PrivacyError(f"noise was calibrated for {n} images, and there are {count}")
    # For classes of which there is no image too: a block without noise would say so.
    noise = discrete_gaussian(sums.numel()).reshape(sums.shape)
    return np.asarray((sums.numpy() + noise) * (grid / n), dtype=np.float64)


def class_moments(
    released: NDArray[np.float64], sigma: float, scales: Scales
) -> Mapping[int, tuple[Tensor, Tensor]]:
    """{class: (mean (F,), variance (F,))}, float32, of the classes that rise above the noise.

    Post-processing alone: means are cut off at 0, and the variance is the second moment less the
    squared mean, to which the square's expected noise is added back, cut off at 0.
    """
    size = len(scales.first)
    out = {}
    for label, block in enumerate(torch.from_numpy(released)):
        if block[0] <= _SURE * sigma:
            continue
        weight = block[0] / scales.constant
        mean = (block[1 : 1 + size] / scales.first / weight).clamp_min(0)
        second = block[1 + size :] / scales.second / weight
        noise = sigma / scales.first / weight
        variance = (second - mean.square() + noise.square()).clamp_min(0)
        out[label] = (mean.float(), variance.float())
    return out


def weighted_moments(features: Sequence[Tensor], scales: Scales) -> tuple[Tensor, Tensor]:
    """(F,) mean and (F,) variance of generated images of one class, weighted by 1 / |g(x)|.

    The weights carry no gradient. Weighted by w with sum 1, B images underestimate the variance by
    1 - sum w^2, which is made up for.

    Args:
        features: per layer (B, C, H, W), B at least 2; gradients flow through.
        scales: those of the release, on the features' device.
    """
    flat = [layer.flatten(1).float() for layer in features]
    sizes = [layer.shape[1] for layer in flat]
    with torch.no_grad():
        squared = torch.full((len(flat[0]),), scales.constant**2, device=flat[0].device)
        for layer, a, b in zip(
            flat, torch.split(scales.first, sizes), torch.split(scales.second, sizes), strict=True
        ):
            # A scale is one number a layer.
            squares = layer.square()
            squared += a[0].float() ** 2 * squares.sum(1)
            squared += b[0].float() ** 2 * squares.square().sum(1)
        weights = squared.rsqrt()
        row = (weights / weights.sum()).unsqueeze(0)
        correction = 1 / (1 - row.square().sum())
    mean = torch.cat([(row @ layer)[0] for layer in flat])
    second = torch.cat([(row @ layer.square())[0] for layer in flat])
    return mean, (second - mean.square()) * correction
