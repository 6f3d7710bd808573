"""Frozen weights: random signs from the seed, one magnitude per layer.

Signs are raw Philox bits, so every platform builds the same weights; their digest is
compared when a client joins.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from common.masks import pack
from common.model.architecture import Architecture, LayerSpec
from common.seeding import bits


def layer_signs(seed: int, index: int, layer: LayerSpec) -> NDArray[np.uint8]:
    """(count,) bits of one layer; 1 stands for a positive weight."""
    return bits(layer.count, seed, "frozen-weights", index)


def frozen_weights(architecture: Architecture, seed: int) -> NDArray[np.float32]:
    """(d,) float32: sign times sqrt(2 / fan_in), layer after layer (signed Kaiming constant)."""
    weights = np.empty(architecture.dimension, dtype=np.float32)
    for index, layer in enumerate(architecture.layers):
        signs = layer_signs(seed, index, layer).astype(np.float32) * 2 - 1
        weights[layer.offset : layer.offset + layer.count] = signs * np.float32(layer.magnitude)
    return weights


def weights_digest(architecture: Architecture, seed: int) -> bytes:
    """SHA-256 over every layer's name, shape and packed signs; no float enters."""
    sha = hashlib.sha256()
    for index, layer in enumerate(architecture.layers):
        sha.update(f"{layer.name}:{layer.kind}:{layer.shape}:{layer.fan_in};".encode())
        sha.update(pack(layer_signs(seed, index, layer)).tobytes())
    return sha.digest()
