"""Frozen feature extractors by name."""

from __future__ import annotations

from pathlib import Path

from common.encoders.base import FeatureEncoder
from common.encoders.small import load_small
from common.encoders.vgg19_bn import load_vgg19_bn
from common.errors import ConfigError

__all__ = ["FeatureEncoder", "load_encoder", "load_small", "load_vgg19_bn"]


def load_encoder(
    name: str,
    layers: tuple[int, ...] | None = None,
    pool: int | None = None,
    weights: Path | None = None,
) -> FeatureEncoder:
    """An encoder on the CPU, frozen; it takes grey and colour images alike.

    Args:
        name: `small` or `vgg19_bn`.
        layers: feature layers to return, by index; by default all of them.
        pool: average-pool each feature map down to pool x pool.
        weights: a file to read instead of the bundled or downloaded weights.

    Raises:
        ConfigError: the name or a layer is unknown.
        ModelFileError: the weights are missing, do not fit, or cannot be downloaded.
    """
    if name == "small":
        return load_small(layers, pool, weights)
    if name == "vgg19_bn":
        return load_vgg19_bn(layers, pool, weights)
    raise ConfigError(f"unknown encoder {name!r}; known are small, vgg19_bn")
