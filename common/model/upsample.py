"""A 3x3 convolution of a nearest-doubled map, without ever computing on the doubled map."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_MANY_CHANNELS: Final = 256
"""From here on the fewest products are the fastest; below, the fewest passes over memory."""


def doubled_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """conv2d(interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1).

    The four copies of a pixel meet the same weights, so 9 or 16 products a pixel and pair of
    channels give what 36 would; results differ from the plain form by rounding alone.

    Args:
        x: (B, I, H, W).
        weight: (O, I, 3, 3).

    Returns:
        (B, O, 2 H, 2 W), channels last where x has them last.
    """
    form = _by_taps if x.shape[1] >= _MANY_CHANNELS else _by_transposed_convolution
    return form(x, weight)


def _by_transposed_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Doubling is inserting zeros and a 2x2 box, and the box goes into the kernel: now 4x4."""
    padded = F.pad(weight, (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    kernel = rows[..., 1:] + rows[..., :-1]
    # A transposed convolution applies its kernel mirrored, channels swapped.
    mirrored = kernel.flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, mirrored, stride=2, padding=1)


def _by_taps(x: Tensor, weight: Tensor) -> Tensor:
    """One matrix product on the small map for all nine taps; then sums of shifted results."""
    (batch, _, height, width), (outputs, inputs) = x.shape, weight.shape[:2]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, inputs)
    taps = F.linear(pixels, weight.permute(2, 3, 0, 1).reshape(-1, inputs))
    taps = taps.view(batch, height, width, 3, 3, outputs)
    rows = _interleave(taps.select(3, 0), taps.select(3, 1), taps.select(3, 2), 1)
    both = _interleave(rows.select(3, 0), rows.select(3, 1), rows.select(3, 2), 2)
    return both.permute(0, 3, 1, 2)


def _interleave(before: Tensor, at: Tensor, after: Tensor, axis: int) -> Tensor:
    """One axis doubled: of three taps, an even pixel sees one left of it, an odd one right."""
    n = at.shape[axis]
    even, odd = at + after, before + at
    even.narrow(axis, 1, n - 1).add_(before.narrow(axis, 0, n - 1))
    odd.narrow(axis, 0, n - 1).add_(after.narrow(axis, 1, n - 1))
    return torch.stack((even, odd), axis + 1).flatten(axis, axis + 1)
