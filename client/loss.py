"""Feature matching: the MMD with a perceptual kernel, by moments (GFMN, dos Santos et al. 2019).

Real data enter only as two statistics of each frozen feature, computed once: its mean and its
variance or, under `privacy.mechanism = "moments"`, a private release of the means of two maps
of it (DP-MEPF, Harder et al. 2023). Each step compares them with the same statistics of a
generated batch; the differences are smoothed by moving averages, and the generator descends
along the smoothed differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from common.data import to_unit

_TINY = 1e-30
"""Keeps the gradient of an image without any feature finite."""

_CHUNK: Final = 1 << 14
"""Features at a time, so that on a CPU what they become on the way stays in its cache."""


@dataclass(frozen=True)
class Moments:
    """Per-feature statistics, all layers one after another.

    Attributes:
        mean: (F,) float32; where normalised, the mean of phi1 = f / |f|.
        variance: (F,) float32, population variance; where normalised, the mean of
            phi2 = f^2 / |f^2|.
        normalised: which of the two kinds they are; only like may be compared with like.
    """

    mean: Tensor
    variance: Tensor
    normalised: bool = False

    def of(self, features: Sequence[Tensor]) -> Moments:
        """The same statistics of a batch, layer by layer; gradients flow through."""
        return normalised_moments(features) if self.normalised else feature_moments(features)

    def to(self, device: torch.device) -> Moments:
        """The same on another device."""
        return Moments(self.mean.to(device), self.variance.to(device), self.normalised)


def feature_moments(features: Sequence[Tensor]) -> Moments:
    """Moments of one batch, layer by layer: no (B, F) matrix of all features is ever built.

    Args:
        features: per layer (B, C, H, W); gradients flow through.

    Returns:
        Moments in float32, whatever the features are in, for their differences cancel.
    """
    means, variances = zip(*map(_layer_moments, features), strict=True)
    return Moments(torch.cat(means), torch.cat(variances))


def _layer_moments(layer: Tensor) -> tuple[Tensor, Tensor]:
    last = layer.permute(0, 2, 3, 1)
    if not last.is_contiguous():
        return _BatchMoments.apply(layer.flatten(1))  # type: ignore[no-untyped-call, no-any-return]
    # The moments are put in order, not the features, of which there are B times as many.
    pair = _BatchMoments.apply(last.flatten(1))  # type: ignore[no-untyped-call]
    mean, variance = (m.view(last.shape[1:]).permute(2, 0, 1).flatten() for m in pair)
    return mean, variance


def normalised_moments(features: Sequence[Tensor]) -> Moments:
    """Means over the batch of phi1 = f / |f| and phi2 = f^2 / |f^2|.

    f is one image's features of all layers together, so each image counts for a unit vector
    at most (Harder et al., "Pre-trained Perceptual Features Improve Differentially Private
    Image Generation", TMLR 2023).

    Args:
        features: per layer (B, C, H, W), not negative; gradients flow through.
    """
    flat = [_wide(layer.flatten(1)) for layer in features]
    squares = [layer.square() for layer in flat]
    first = torch.stack([layer.sum(1) for layer in squares]).sum(0)
    second = torch.stack([layer.square().sum(1) for layer in squares]).sum(0)
    # (1, B) rows: the mean of scaled images is a product with the scales.
    by_first = (first.clamp_min(_TINY).rsqrt() / len(first)).unsqueeze(0)
    by_second = (second.clamp_min(_TINY).rsqrt() / len(second)).unsqueeze(0)
    return Moments(
        torch.cat([(by_first @ layer)[0] for layer in flat]),
        torch.cat([(by_second @ layer)[0] for layer in squares]),
        normalised=True,
    )


class _BatchMoments(torch.autograd.Function):
    """Mean and population variance over the batch, (B, F) to twice (F,), at least float32.

    Sums over the batch are products with a row of ones, and the backward pass is one fused
    multiply-add: over ten times faster on CPU than torch.var_mean and its derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        row = _wide(x.new_ones((1, len(x)))) / len(x)
        first, second = [], []
        chunk = _CHUNK if x.device.type == "cpu" else x.shape[1]
        for part in map(_wide, torch.split(x, chunk, dim=1)):
            first.append((row @ part)[0])
            second.append((row @ part.square())[0])
        mean = torch.cat(first)
        variance = torch.cat(second) - mean.square()
        ctx.save_for_backward(x, mean)
        return mean, variance.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        by_mean, by_variance = gradients
        slope = by_variance * (2 / len(x))
        level = by_mean / len(x) - slope * mean
        return torch.addcmul(level.to(x.dtype), x, slope.to(x.dtype))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def real_moments(encoder: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Moments:
    """Moments of all real images, accumulated in float64 over batches.

    Args:
        encoder: frozen; (B, C, H, W) in [-1, 1] to a list of feature maps.
        batches: uint8 images (B, C, H, W).
        device: where to compute.

    Returns:
        Moments on `device`.
    """
    count = 0
    first = second = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for images in batches:
            flat = [layer.flatten(1).double() for layer in encoder(to_unit(images.to(device)))]
            first = first + torch.cat([layer.sum(0) for layer in flat])
            second = second + torch.cat([layer.square().sum(0) for layer in flat])
            count += len(images)
    mean = first / count
    variance = (second / count - mean.square()).clamp_min(0)
    return Moments(mean.float(), variance.float())


class MovingAverages:
    """v_m and v_v: each moved by one Adam step a batch towards the current difference.

    Attributes:
        mean: (F,) v_m, of real mean minus generated mean.
        variance: (F,) v_v, likewise of the variances.
    """

    def __init__(self, features: int, rate: float, device: torch.device) -> None:
        self.mean = torch.zeros(features, device=device, requires_grad=True)
        self.variance = torch.zeros(features, device=device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.mean, self.variance], lr=rate, betas=(0.5, 0.999))

    def step(self, real: Moments, generated: Moments) -> Tensor:
        """Move both averages, then return the generator's loss.

        The loss <v_m, real mean - generated mean> + <v_v, real variance - generated variance>
        carries gradients through `generated` alone.
        """
        mean_difference = real.mean - generated.mean
        variance_difference = real.variance - generated.variance
        # The gradient of the squared error |v - difference|^2, which Adam follows.
        self.mean.grad = 2 * (self.mean.detach() - mean_difference.detach())
        self.variance.grad = 2 * (self.variance.detach() - variance_difference.detach())
        self.optimiser.step()
        return self.mean.detach() @ mean_difference + self.variance.detach() @ variance_difference
