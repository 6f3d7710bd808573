"""Shapes of the generator, and where each masked layer lies in the flat parameter vector.

Pure arithmetic: the server needs the dimension and the layer borders, not torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from common.config import ModelConfig

BASE = 4
"""Height and width of the first feature map."""


@dataclass(frozen=True)
class LayerSpec:
    """One masked layer.

    Attributes:
        name: dotted, as in "block0.conv1".
        kind: which operation the weight belongs to.
        shape: of the weight, in torch's order for that operation.
        fan_in: inputs that meet in one output.
        offset: first parameter in the flat vector.
    """

    name: str
    kind: Literal["conv", "transposed"]
    shape: tuple[int, ...]
    fan_in: int
    offset: int

    @property
    def count(self) -> int:
        """Parameters in this layer."""
        return math.prod(self.shape)

    @property
    def magnitude(self) -> float:
        """The constant |w| of the signed Kaiming initialisation, sqrt(2 / fan_in)."""
        return math.sqrt(2.0 / self.fan_in)


@dataclass(frozen=True)
class Architecture:
    """The ResNet generator of PRISM (section 5; GFMN's, without trained parts).

    z -> transposed convolution to 4x4 -> one residual block per doubling, the width halving
    down to `width` -> normalisation, ReLU, 3x3 convolution, tanh.
    """

    latent: int
    width: int
    image_size: int
    channels: int

    @classmethod
    def of(cls, model: ModelConfig) -> Architecture:
        """The architecture that a resolved config describes."""
        return cls(model.latent, model.width, model.image_size, model.channels or 1)

    @property
    def blocks(self) -> int:
        """Residual blocks, one per doubling from 4x4."""
        return (self.image_size // BASE).bit_length() - 1

    @property
    def base_width(self) -> int:
        """Channels of the 4x4 feature map."""
        return self.width << self.blocks

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All masked layers in forward order; they tile [0, dimension)."""
        layers: list[LayerSpec] = []

        def add(name: str, kind: Literal["conv", "transposed"], shape: tuple[int, ...]) -> None:
            # A transposed convolution of a 1x1 map meets each input once per output.
            fan_in = shape[0] if kind == "transposed" else math.prod(shape[1:])
            offset = layers[-1].offset + layers[-1].count if layers else 0
            layers.append(LayerSpec(name, kind, shape, fan_in, offset))

        add("project", "transposed", (self.latent, self.base_width, BASE, BASE))
        wide = self.base_width
        for block in range(self.blocks):
            narrow = wide // 2
            add(f"block{block}.conv1", "conv", (narrow, wide, 3, 3))
            add(f"block{block}.conv2", "conv", (narrow, narrow, 3, 3))
            add(f"block{block}.bypass", "conv", (narrow, wide, 1, 1))
            wide = narrow
        add("image", "conv", (self.channels, wide, 3, 3))
        return tuple(layers)

    @property
    def dimension(self) -> int:
        """Return d, the number of maskable parameters."""
        return self.layers[-1].offset + self.layers[-1].count
