"""Shapes of the generator, and where each masked layer lies in the flat parameter vector.

Pure arithmetic: the server needs the dimension and the layer borders, not torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from common.cells import CODE_SIZE
from common.config import RunConfig

Kind = Literal["conv", "transposed", "label"]
FanIn = Literal["inputs", "torch"]
BASE = 4
"""Height and width of the first feature map."""


@dataclass(frozen=True)
class LayerSpec:
    """One masked layer.

    Attributes:
        name: dotted, as in "block0.conv1".
        kind: which operation the weight belongs to.
        shape: of the weight, in torch's order for that operation.
        fan_in: inputs that meet in one output, or what counts for them.
        offset: first parameter in the flat vector.
    """

    name: str
    kind: Kind
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

    z -> transposed convolution to 4x4, plus one of the label or code -> one residual block per
    doubling, the width halving down to `width` -> normalisation, ReLU, 3x3 convolution, tanh.

    Attributes:
        latent: entries of z.
        width: channels of the last block.
        image_size: side in pixels.
        channels: 1 or 3.
        classes: labels that the generator is told apart by; 0 for none, as published.
        code: entries of the code that stands for a label where images have none; 0 for none.
        fan_in: how inputs are counted in the first layer, see `ModelConfig`.
    """

    latent: int
    width: int
    image_size: int
    channels: int
    classes: int = 0
    code: int = 0
    fan_in: FanIn = "inputs"

    @classmethod
    def of(cls, config: RunConfig) -> Architecture:
        """The architecture that a run's config describes."""
        model, classes = config.model, len(config.classes)
        code = CODE_SIZE if config.uses_cells else 0
        sizes = (model.latent, model.width, model.image_size, config.channels)
        return cls(*sizes, classes, code, model.fan_in)

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

        def add(name: str, kind: Kind, shape: tuple[int, ...]) -> None:
            # A transposed convolution of a 1x1 map meets each input once per output, and of a
            # one-hot label only one input is not zero.
            kernel = math.prod(shape[1:])
            fan_in = {"conv": kernel, "transposed": shape[0], "label": 1}[kind]
            if kind != "conv" and self.fan_in == "torch":
                # torch counts the second axis of any kernel and its area; what stands beside z
                # keeps its size relative to z.
                fan_in = max(1, fan_in * kernel // self.latent)
            offset = layers[-1].offset + layers[-1].count if layers else 0
            layers.append(LayerSpec(name, kind, shape, fan_in, offset))

        add("project", "transposed", (self.latent, self.base_width, BASE, BASE))
        if self.classes:
            add("label", "label", (self.classes, self.base_width, BASE, BASE))
        if self.code:
            add("code", "transposed", (self.code, self.base_width, BASE, BASE))
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
