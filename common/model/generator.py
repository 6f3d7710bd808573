"""The ResNet generator as a function of noise, effective weights and a normaliser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.cells import CellTable
from common.model.architecture import Architecture
from common.model.masked import Operation, apply_layer, layer_weights
from common.model.upsample import doubled_convolution


class Normaliser(Protocol):
    """Batch normalisation without trained parts; `index` counts sites in forward order."""

    def __call__(self, x: Tensor, index: int) -> Tensor:
        """(B, C, H, W) -> the same shape, zero mean and unit variance per channel."""


def batch_statistics(x: Tensor, index: int) -> Tensor:  # noqa: ARG001 - a Normaliser
    """Normalise by the batch's own statistics, always, in training."""
    # With a weight in float32, half precision normalises by statistics in float32.
    unit = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return F.batch_norm(x, None, None, unit, torch.zeros_like(unit), training=True)


@dataclass(frozen=True)
class FixedStatistics:
    """Normalise by stored statistics, in sampling.

    Attributes:
        means: per site, (C,) float32.
        variances: per site, (C,) float32.
    """

    means: Sequence[Tensor]
    variances: Sequence[Tensor]

    def __call__(self, x: Tensor, index: int) -> Tensor:
        """See `Normaliser`."""
        return F.batch_norm(x, self.means[index], self.variances[index], training=False)


def generate(
    architecture: Architecture,
    z: Tensor,
    weights: Tensor,
    normalise: Normaliser = batch_statistics,
    *,
    labels: Tensor | None = None,
    codes: Tensor | None = None,
) -> Tensor:
    """Images from noise and, where the generator has classes or cells, labels or codes.

    Args:
        architecture: shapes and offsets.
        z: (B, latent) standard normal.
        weights: (d,) effective weights.
        normalise: batch statistics in training, stored ones in sampling.
        labels: (B,) int64 classes from 0, on the device of z; None where there are none.
        codes: (B, 16) of cells, likewise.

    Returns:
        (B, channels, image_size, image_size) in [-1, 1].
    """
    layers = {layer.name: layer for layer in architecture.layers}
    parts = layer_weights(architecture.layers, weights)

    def run(name: str, x: Tensor, operation: Operation | None = None) -> Tensor:
        return apply_layer(layers[name], x, parts[name], operation)

    x = run("project", z[:, :, None, None])
    if labels is not None:
        x = x + run("label", labels).to(x.dtype)
    if codes is not None:
        x = x + run("code", codes[:, :, None, None])
    # The convolutions that follow are fastest on this layout.
    x = x.contiguous(memory_format=torch.channels_last)
    for block in range(architecture.blocks):
        # A 1x1 convolution and nearest upsampling commute; small first is four times cheaper.
        bypass = _double(run(f"block{block}.bypass", x))
        x = F.relu(normalise(x, 2 * block))
        x = run(f"block{block}.conv1", x, doubled_convolution)
        x = F.relu(normalise(x, 2 * block + 1))
        x = bypass + run(f"block{block}.conv2", x)
    x = F.relu(normalise(x, 2 * architecture.blocks))
    return torch.tanh(run("image", x))


def balanced_labels(classes: Sequence[int], n: int, start: int = 0) -> Tensor | None:
    """(n,) int64: the classes in turn, from image number `start` on; None without classes."""
    if not classes:
        return None
    return torch.tensor(classes)[torch.arange(start, start + n) % len(classes)]


def normalised_widths(architecture: Architecture) -> list[int]:
    """Channels at each normalisation site, in forward order."""
    widths = [architecture.base_width >> (site + 1) // 2 for site in range(2 * architecture.blocks)]
    return [*widths, architecture.width]


def calibrate(
    architecture: Architecture,
    weights: Tensor,
    generator: torch.Generator,
    batches: int = 8,
    classes: Sequence[int] = (),
    cells: CellTable | None = None,
) -> FixedStatistics:
    """Statistics for sampling: means and variances pooled over batches of 128 noise vectors.

    Args:
        architecture: shapes and offsets.
        weights: (d,) effective weights.
        generator: draws the noise.
        batches: of 128 noise vectors.
        classes: that take equal shares, as in sampling; none where there are no labels.
        cells: that take the shares of their counts, as in sampling; None where there are none.
    """
    sites = 2 * architecture.blocks + 1
    first: list[Tensor] = [torch.zeros(())] * sites
    second: list[Tensor] = [torch.zeros(())] * sites

    def record(x: Tensor, index: int) -> Tensor:
        first[index] = first[index] + x.mean(dim=(0, 2, 3)) / batches
        second[index] = second[index] + x.square().mean(dim=(0, 2, 3)) / batches
        return batch_statistics(x, index)

    with torch.no_grad():
        for batch in range(batches):
            z = torch.randn(128, architecture.latent, generator=generator)
            labels = balanced_labels(classes, 128, start=128 * batch)
            codes = None if cells is None else torch.from_numpy(cells.drawn(128, 128 * batch))
            generate(architecture, z, weights, record, labels=labels, codes=codes)
    variances = [(s - f.square()).clamp_min(0) for f, s in zip(first, second, strict=True)]
    return FixedStatistics(first, variances)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
