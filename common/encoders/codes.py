"""Sketches and codes of images: coordinates that are the same at every client and in every run.

A sketch is what the bundled encoder says of an image, standardised as its features of CIFAR-10
are; a code is the sketch projected on the sixteen directions in which those vary most, each scaled
to unit variance there. No private image has a part in the map, so nothing need be agreed on.
Computed and written by `python -m benchmarks.code_map`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from common.data.source import to_unit
from common.encoders.base import FeatureEncoder, tensors_digest
from common.encoders.small import load_small
from common.errors import ModelFileError

BUNDLED_MAP: Final = Path(__file__).with_name("codes.safetensors")
MAP_DIGEST: Final = "710dbc2e093edc8fa96168b899132a01b1e7cbdbb306a9e4f641569f0f545c7e"
"""SHA-256 of the bundled map's tensors."""
SIDE: Final = 32
"""Images are scaled to what the encoder was trained on."""
LAYERS: Final = (2, 3)
POOL: Final = 2
SKETCH: Final = 1024
"""Features of an image: two layers of 128 channels, pooled to 2x2."""


@dataclass(frozen=True)
class CodeMap:
    """Maps the encoder's features to sketches, and these to codes.

    Attributes:
        mean: (1024,) float32 means of the features.
        std: (1024,) float32 standard deviations.
        directions: (1024, 16) float32 what sketches are multiplied with.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    directions: NDArray[np.float32]


def sketches_of(batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Sketches of images; on the CPU, so that they hardly differ between machines.

    Args:
        batches: uint8 images (B, 1 or 3, S, S), one batch at least.

    Returns:
        (n, 1024) float32.

    Raises:
        ModelFileError: the encoder or the map is not the one that belongs to this version.
    """
    encoder, of = sketcher(), bundled_map()
    return np.concatenate([(features(encoder, images) - of.mean) / of.std for images in batches])


def codes_of(sketches: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1024) sketches to (n, 16) codes, float32; linear, so the code of a mean is the mean.

    Raises:
        ModelFileError: as `sketches_of`.
    """
    return sketches @ bundled_map().directions


def sketcher() -> FeatureEncoder:
    """The bundled encoder as sketches use it, whichever encoder a run matches."""
    return load_small(LAYERS, POOL)


def features(encoder: FeatureEncoder, images: Tensor) -> NDArray[np.float32]:
    """(B, 1024) features of uint8 images (B, 1 or 3, S, S), scaled to 32 x 32 pixels."""
    x = to_unit(images)
    if x.shape[-1] != SIDE:
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    with torch.no_grad():
        flat: NDArray[np.float32] = torch.cat([f.flatten(1) for f in encoder(x)], 1).numpy()
    return flat


@cache
def bundled_map() -> CodeMap:
    """The map that comes along.

    Raises:
        ModelFileError: it is missing or altered, or the bundled encoder is another one.
    """
    try:
        tensors = load_file(BUNDLED_MAP)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"cannot read {BUNDLED_MAP}: {error}") from error
    if tensors_digest(tensors).hex() != MAP_DIGEST:
        raise ModelFileError(f"{BUNDLED_MAP} is not this version's: install it anew")
    if tensors["encoder"].numpy().tobytes() != sketcher().digest():
        raise ModelFileError(
            f"{BUNDLED_MAP} is of another encoder: run python -m benchmarks.code_map"
        )
    return CodeMap(*(tensors[name].float().numpy() for name in ("mean", "std", "directions")))
