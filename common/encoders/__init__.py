"""Frozen feature extractors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from common.encoders.base import FeatureEncoder
from common.encoders.small import load_small
from common.encoders.vgg19_bn import load_vgg19_bn
from common.errors import ConfigError

__all__ = ["ENCODERS", "FeatureEncoder", "load_encoder", "load_small", "load_vgg19_bn"]

Loader = Callable[[tuple[int, ...] | None, int | None, Path | None], FeatureEncoder]
"""From (layers, pool, weights), as `load_encoder` takes them."""

ENCODERS: Final[Mapping[str, Loader]] = {"small": load_small, "vgg19_bn": load_vgg19_bn}
"""By the names that `encoder.name` takes; a further encoder is one more line here, and its file."""


def load_encoder(
    name: str,
    layers: tuple[int, ...] | None = None,
    pool: int | None = None,
    weights: Path | None = None,
) -> FeatureEncoder:
    """An encoder on the CPU, frozen; it takes grey and colour images alike.

    Args:
        name: one of `ENCODERS`.
        layers: feature layers to return, by index; by default all of them.
        pool: average-pool each feature map down to pool x pool.
        weights: a file to read instead of the bundled or downloaded weights.

    Raises:
        ConfigError: the name or a layer is unknown.
        ModelFileError: the weights are missing, do not fit, or cannot be downloaded.
    """
    if name not in ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}; known are {', '.join(ENCODERS)}")
    return ENCODERS[name](layers, pool, weights)
