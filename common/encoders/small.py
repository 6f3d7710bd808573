"""Four convolutions trained on CIFAR-10: the encoder that comes along.

Trained and written by `python -m benchmarks.train_encoder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from common.encoders.base import Architecture, FeatureEncoder, tensors_digest
from common.errors import ModelFileError

SMALL: Final = Architecture("small", widths=(32, 64, 128, 128), pooled=frozenset({0, 1, 2}))
BUNDLED: Final = Path(__file__).with_name("small.safetensors")


def load_small(
    layers: tuple[int, ...] | None = None, pool: int | None = None, weights: Path | None = None
) -> FeatureEncoder:
    """The small encoder; layers 0 to 3 are its four ReLUs.

    Args:
        layers: feature layers to return; by default all.
        pool: average-pool feature maps down to pool x pool.
        weights: a safetensors file with `conv{i}.weight` and `conv{i}.bias`, batch
            normalisation folded in; by default the bundled one.

    Raises:
        ConfigError: a layer does not exist.
        ModelFileError: the weights are missing or do not fit.
    """
    path = weights or BUNDLED
    tensors = _read(path)
    pairs = []
    inputs = 3
    for index, width in enumerate(SMALL.widths):
        weight, bias = tensors.get(f"conv{index}.weight"), tensors.get(f"conv{index}.bias")
        if weight is None or weight.shape != (width, inputs, 3, 3):
            raise ModelFileError(f"{path} is no small encoder: conv{index}.weight does not fit")
        if bias is None or bias.shape != (width,):
            raise ModelFileError(f"{path} is no small encoder: conv{index}.bias does not fit")
        pairs.append((weight, bias))
        inputs = width
    return FeatureEncoder(SMALL, pairs, tensors_digest(tensors), layers, pool)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"cannot read encoder weights {path}: {error}") from error
