"""Kernels in bfloat16 whose rounding hardly shows in what they compute."""

from __future__ import annotations

import torch
from torch import Tensor


def round_kernels(weight: Tensor) -> Tensor:
    """A convolution's weight in bfloat16, the errors of each kernel's taps all but cancelling.

    Weights are rounded once and for all, so to the nearest their errors would shift the same
    features of every image, by far more than the rounding of each activation, which averages
    out. But a kernel meets similar values at all its taps: what counts is the sum of its
    errors. Each tap therefore takes over the error of the one before, the largest first,
    which leaves the sum with an error of the smallest one's.

    Args:
        weight: (O, I, height, width) float32.

    Returns:
        the same shape in bfloat16, channels last.
    """
    taps = weight.flatten(2)
    order = taps.abs().argsort(dim=2, descending=True, stable=True)
    taps = taps.gather(2, order)
    rounded = torch.empty_like(taps, dtype=torch.bfloat16)
    carried = torch.zeros_like(taps[..., 0])
    for tap, nearest in zip(taps.unbind(2), rounded.unbind(2), strict=True):
        wanted = tap + carried
        nearest.copy_(wanted)
        carried = wanted - nearest
    placed = torch.empty_like(rounded).scatter_(2, order, rounded)
    return placed.view_as(weight).contiguous(memory_format=torch.channels_last)
