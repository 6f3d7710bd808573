"""Feature matching: the MMD with a perceptual kernel, by moments (GFMN, dos Santos et al. 2019).

Real data enter only as two statistics of each frozen feature, class by class or cell by cell
where these are used, computed once: its mean and its variance or, under
`privacy.mechanism = "moments"`, what a private release says of them (after DP-MEPF, Harder et al.
2023). Each step compares them with the same statistics of a generated batch; the differences are
smoothed by moving averages, and the generator descends along the smoothed differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from client.weighted import Scales
from common.cells import NO_CELLS, CellTable
from common.config import RunConfig
from common.data import to_unit

_TINY = 1e-30
"""Keeps the gradient of an image without any feature finite."""

_CHUNK: Final = 1 << 14
"""Features at a time, so that on a CPU what they become on the way stays in its cache."""


class Kind(Enum):
    """Which statistics moments are; only like may be compared with like."""

    PLAIN = "mean and variance"
    NORMALISED = "means of phi1 = f / |f| and phi2 = f^2 / |f^2|"
    """The private release where labels are ignored."""
    WEIGHTED = "mean and variance, an image weighing 1 / |g|"
    """The private release where labels are used; see `client.weighted`."""

    @classmethod
    def of(cls, config: RunConfig) -> Kind:
        """What a run's training matches."""
        if config.privacy.mechanism != "moments":
            return cls.PLAIN
        return cls.WEIGHTED if config.classes else cls.NORMALISED


@dataclass(frozen=True)
class Moments:
    """Per-feature statistics of one or more groups of images, all layers one after another.

    Attributes:
        mean: (G, F) float32; of NORMALISED moments, the mean of phi1.
        variance: (G, F) float32, population variance; of NORMALISED moments, the mean of phi2.
        classes: the label of each group, ascending; empty where labels are ignored.
        kind: which statistics they are.
        scales: what g is made with; of WEIGHTED moments alone.
        cells: the code and size of each group where cells stand for classes; else empty. With
            neither, all images are one group.
    """

    mean: Tensor
    variance: Tensor
    classes: tuple[int, ...] = ()
    kind: Kind = Kind.PLAIN
    scales: Scales | None = None
    cells: CellTable = NO_CELLS

    def __post_init__(self) -> None:
        if (self.kind is Kind.WEIGHTED) != (self.scales is not None):
            raise ValueError("scales are of weighted moments, and of no other")

    def to(self, device: torch.device) -> Moments:
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), variance=self.variance.to(device))


def feature_moments(features: Sequence[Tensor], groups: int = 1) -> Moments:
    """Moments of one batch, layer by layer: no (B, F) matrix of all features is ever built.

    Args:
        features: per layer (B, C, H, W), B a multiple of `groups`; gradients flow through.
        groups: consecutive blocks of B / groups images, G of them.

    Returns:
        (G, F) population moments, in float32 whatever the features are in, for their
        differences cancel.
    """
    means, variances = zip(*(_layer_moments(layer, groups) for layer in features), strict=True)
    return Moments(torch.cat(means, dim=1), torch.cat(variances, dim=1))


def _layer_moments(layer: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    last = layer.permute(0, 2, 3, 1)
    if not last.is_contiguous():
        return _BatchMoments.apply(layer.flatten(1), groups)  # type: ignore[no-untyped-call, no-any-return]
    # The moments are put in order, not the features, of which there are B times as many.
    pair = _BatchMoments.apply(last.flatten(1), groups)  # type: ignore[no-untyped-call]
    shape = (groups, *last.shape[1:])
    mean, variance = (m.view(shape).permute(0, 3, 1, 2).flatten(1) for m in pair)
    return mean, variance


def unbiased(moments: Moments, images: int) -> Moments:
    """Population variances of `images` a group, corrected to be unbiased: blocks are small."""
    return replace(moments, variance=moments.variance * (images / (images - 1)))


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
        torch.cat([by_first @ layer for layer in flat], dim=1),
        torch.cat([by_second @ layer for layer in squares], dim=1),
        kind=Kind.NORMALISED,
    )


class _BatchMoments(torch.autograd.Function):
    """Mean and population variance over each of G blocks, (B, F) to twice (G, F), at least float32.

    Sums over a block are products with a row of ones, and the backward pass is one fused
    multiply-add: over ten times faster on CPU than torch.var_mean and its derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        size = len(x) // groups
        row = _wide(x.new_ones((1, size))) / size
        first, second = [], []
        chunk = _CHUNK if x.device.type == "cpu" else x.shape[1]
        for block in torch.split(x, size):
            for part in map(_wide, torch.split(block, chunk, dim=1)):
                first.append((row @ part)[0])
                second.append((row @ part.square())[0])
        mean = torch.cat(first).view(groups, -1)
        variance = torch.cat(second).view(groups, -1) - mean.square()
        ctx.save_for_backward(x, mean)
        return mean, variance.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        by_mean, by_variance = gradients
        size = len(x) // len(mean)
        slope = by_variance * (2 / size)
        level = by_mean / size - slope * mean
        blocks = x.view(len(mean), size, -1)
        by_x = torch.addcmul(level.to(x.dtype)[:, None], blocks, slope.to(x.dtype)[:, None])
        return by_x.view(x.shape), None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def real_moments(encoder: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Moments:
    """Moments of all real images as one group, accumulated in float64 over batches.

    Args:
        encoder: frozen; (B, C, H, W) in [-1, 1] to a list of feature maps.
        batches: uint8 images (B, C, H, W).
        device: where to compute.

    Returns:
        (1, F) moments on `device`.
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
    return Moments(mean.float().unsqueeze(0), variance.float().unsqueeze(0))


def class_moments(
    encoder: nn.Module, batches: Mapping[int, Iterable[Tensor]], device: torch.device
) -> Moments:
    """Moments of each class or cell by itself: `real_moments` of the batches of each label."""
    classes = tuple(sorted(batches))
    rows = [real_moments(encoder, batches[label], device) for label in classes]
    return Moments(
        torch.cat([row.mean for row in rows]), torch.cat([row.variance for row in rows]), classes
    )


class MovingAverages:
    """v_m and v_v of each group: moved by one Adam step a batch towards the current difference.

    Args:
        groups: G.
        features: F.
        rate: Adam's learning rate.
        device: where they are.
        leak: share of themselves that they lose before each step. Without one they are integrals:
            what was pushed for as long as a difference was large goes on being pushed until small
            ones of the other sign have added up to as much.
        loss: whether Adam follows the sum or the mean over the features of the squared error. It
            divides a gradient by its own size, so that tells only where gradients are about as
            small as its epsilon.

    Attributes:
        mean: G times (F,) v_m, of real mean minus generated mean.
        variance: G times (F,) v_v, likewise of the variances.
    """

    def __init__(
        self,
        groups: int,
        features: int,
        rate: float,
        device: torch.device,
        leak: float = 0.0,
        loss: Literal["sum", "mean"] = "sum",
    ) -> None:
        def zeros() -> list[Tensor]:
            return [torch.zeros(features, device=device, requires_grad=True) for _ in range(groups)]

        self.mean, self.variance = zeros(), zeros()
        self.optimiser = torch.optim.Adam([*self.mean, *self.variance], lr=rate, betas=(0.5, 0.999))
        self._keep = 1 - leak
        self._slope = 2 if loss == "sum" else 2 / features

    @property
    def moved(self) -> bool:
        """Whether a step was made, by these or by those whose state was loaded."""
        return bool(self.optimiser.state)

    def scatter(self, noise: torch.Generator) -> None:
        """Start uniform in +-1 / sqrt(F), as torch starts a linear layer of F inputs."""
        with torch.no_grad():
            for average in (*self.mean, *self.variance):
                average.uniform_(-1, 1, generator=noise).div_(math.sqrt(len(average)))

    def step(self, real: Moments, generated: Moments, drawn: Sequence[int]) -> Tensor:
        """Move the averages of the groups that were drawn, then return the generator's loss.

        The loss, <v_m, real mean - generated mean> + <v_v, real variance - generated variance>
        summed over the groups, carries gradients through `generated` alone.

        Args:
            real: of all G groups.
            generated: a row for each drawn group.
            drawn: which groups those are; the averages and optimiser state of others stay.
        """
        self.optimiser.zero_grad()
        terms: list[tuple[Tensor, Tensor]] = []
        for row, group in enumerate(drawn):
            for average, target, value in (
                (self.mean[group], real.mean[group], generated.mean[row]),
                (self.variance[group], real.variance[group], generated.variance[row]),
            ):
                difference = target - value
                # The gradient of the squared error |v - difference|^2, which Adam follows.
                kept = average.detach().mul_(self._keep)
                average.grad = self._slope * (kept - difference.detach())
                terms.append((average, difference))
        self.optimiser.step()
        products = [average.detach() @ difference for average, difference in terms]
        return torch.stack(products).sum()
