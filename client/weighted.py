"""Weighted moments of one class: the maps that the private release of classes goes by.

An image x counts by g(x) = (c, a_l f_l(x), b_l f_l(x)^2), l over the layers: a constant, the
features and their squares, each layer brought to a public scale. The private release takes
g / |g| of each real image (`client/class_release.py`), so an image weighs 1 / |g(x)|; the
generated images are weighted likewise before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import to_unit
from common.encoders import FeatureEncoder
from common.seeding import words

_PICTURES: Final = 16
"""Public pictures at each smoothness."""
_SHARE: Final = 0.5
"""The constant c, beside features and squares whose root mean square is 1 together."""


@dataclass(frozen=True)
class Scales:
    """What the coordinates of g are multiplied by; public, powers of two.

    Attributes:
        constant: c.
        first: a_l, one for each layer.
        second: b_l, likewise.
        sizes: features of each layer, F in all.
    """

    constant: float
    first: tuple[float, ...]
    second: tuple[float, ...]
    sizes: tuple[int, ...]

    @property
    def features(self) -> int:
        """F."""
        return sum(self.sizes)

    @property
    def length(self) -> int:
        """Coordinates of g: 1 + 2 F."""
        return 1 + 2 * self.features

    def of_features(self) -> tuple[Tensor, Tensor]:
        """(F,) a and (F,) b of each feature, float64, on the CPU."""
        sizes = torch.tensor(self.sizes)
        first, second = (
            torch.tensor(scales, dtype=torch.float64).repeat_interleave(sizes)
            for scales in (self.first, self.second)
        )
        return first, second

    def to_tensors(self) -> dict[str, Tensor]:
        """The same as tensors, by name, for a file."""
        as_float = {"constant": self.constant, "first": self.first, "second": self.second}
        tensors = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in as_float.items()
        }
        return {**tensors, "sizes": torch.tensor(self.sizes)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Scales:
        """What `to_tensors` gave.

        Raises:
            KeyError: it is something else.
        """
        first, second, sizes = (tensors[name].tolist() for name in ("first", "second", "sizes"))
        return cls(float(tensors["constant"]), tuple(first), tuple(second), tuple(sizes))


def public_scales(encoder: FeatureEncoder, shape: tuple[int, int, int]) -> Scales:
    """Scales at which each layer of public pictures has a root mean square near 1.

    The pictures are random grids of 2, 4, 8, ... cells a side, smoothed: seeded, the same for
    everyone, and no image of any data set. Powers of two, so that rounding in the encoder hardly
    ever reaches them.

    Args:
        encoder: frozen, on any device.
        shape: (C, S, S) of an image.
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
    device = next(encoder.parameters()).device
    with torch.no_grad():
        layers = [layer.flatten(1) for layer in encoder(to_unit(torch.cat(pictures).to(device)))]
    sizes = tuple(layer.shape[1] for layer in layers)
    return Scales(
        constant=2.0 ** round(math.log2(_SHARE * math.sqrt(2 * sum(sizes)))),
        first=tuple(_scale(layer) for layer in layers),
        second=tuple(_scale(layer.square()) for layer in layers),
        sizes=sizes,
    )


def _scale(layer: Tensor) -> float:
    rms = float(layer.double().square().mean().sqrt())
    return 2.0 ** -round(math.log2(rms)) if rms > 0 else 1.0


def weighted_moments(
    features: Sequence[Tensor], scales: Scales, groups: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each feature over generated images of one class, weighted by 1 / |g|.

    The weights carry no gradient. Weighted by w with sum 1, B images underestimate the variance by
    the factor 1 - sum w^2, which is made up for.

    Args:
        features: per layer (B, C, H, W); gradients flow through.
        scales: those of the release.
        groups: consecutive blocks of B / groups images, G of them, of a class each; two images
            at least.

    Returns:
        (G, F) means and (G, F) variances, float32.
    """
    flat = [layer.flatten(1).float() for layer in features]
    size = len(flat[0]) // groups
    with torch.no_grad():
        squared = torch.full((len(flat[0]),), scales.constant**2, device=flat[0].device)
        for layer, a, b in zip(flat, scales.first, scales.second, strict=True):
            squares = layer.square()
            squared += a**2 * squares.sum(1) + b**2 * squares.square().sum(1)
        weights = squared.rsqrt().view(groups, 1, size)
        weights /= weights.sum(2, keepdim=True)
        correction = 1 / (1 - weights.square().sum(2))
    means, seconds = [], []
    for layer in flat:
        blocks = layer.view(groups, size, -1)
        means.append((weights @ blocks)[:, 0])
        seconds.append((weights @ blocks.square())[:, 0])
    mean, second = torch.cat(means, dim=1), torch.cat(seconds, dim=1)
    return mean, (second - mean.square()) * correction
