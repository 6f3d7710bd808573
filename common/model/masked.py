"""Masked layers: a stochastic binary mask over frozen weights, straight-through backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.architecture import LayerSpec


class _StraightThroughBernoulli(torch.autograd.Function):
    """M = [u < sigma(s)] forward; dL/ds = dL/dM sigma'(s) backward, times sigma(s) if scaled."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, uniform: Tensor, scaled: bool) -> Tensor:
        theta = torch.sigmoid(scores)
        ctx.save_for_backward(theta)
        ctx.scaled = scaled
        return (uniform < theta).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        # In place: at this length, memory that was never touched costs more than arithmetic.
        slope = torch.addcmul(theta, theta, theta, value=-1)
        if ctx.scaled:
            slope.mul_(theta)
        return slope.mul_(gradients[0]), None, None


def sample_mask(scores: Tensor, uniform: Tensor, *, scaled: bool) -> Tensor:
    """A differentiable mask, 0.0 or 1.0, of the scores' shape (section 4.1 of the paper).

    Args:
        scores: logits, any shape, float.
        uniform: independent draws from [0, 1), same shape.
        scaled: whether the backward pass carries the extra factor theta of the released code.
    """
    mask: Tensor = _StraightThroughBernoulli.apply(scores, uniform, scaled)  # type: ignore[no-untyped-call]
    return mask


Operation = Callable[[Tensor, Tensor], Tensor]

_OPERATIONS: dict[str, Operation] = {
    "conv": lambda x, weight: F.conv2d(x, weight, padding=weight.shape[-1] // 2),
    "transposed": F.conv_transpose2d,
    # The row of a label is what a transposed convolution of its one-hot map gives.
    "label": lambda labels, weight: weight[labels],
}


def layer_weights(layers: Sequence[LayerSpec], weights: Tensor) -> dict[str, Tensor]:
    """Each layer's part of the flat effective weights, in its shape, by name.

    One split: its gradient is written once, where slices would each add a vector of length d.

    Args:
        layers: they tile the vector, in order.
        weights: (d,) effective weights W * M of the whole model.
    """
    parts = torch.split(weights, [layer.count for layer in layers])
    return {layer.name: part.view(layer.shape) for layer, part in zip(layers, parts, strict=True)}


def apply_layer(
    layer: LayerSpec, x: Tensor, weight: Tensor, operation: Operation | None = None
) -> Tensor:
    """Run one layer on its effective weight.

    Args:
        layer: whose kind says which operation it is.
        x: (B, C, H, W), or (B,) int64 labels for a label layer.
        weight: W * M, of the layer's shape.
        operation: another form of the kind's operation.
    """
    operation = operation or _OPERATIONS[layer.kind]
    if not torch.is_autocast_enabled(x.device.type):
        return operation(x, weight)
    # Frozen weights are 1 or -1 of their magnitude, which half precision holds exactly; rounding
    # the magnitude itself would scale the whole layer.
    return operation(x, weight / layer.magnitude).mul_(layer.magnitude)
