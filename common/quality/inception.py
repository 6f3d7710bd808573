"""The Inception network behind the published FID, from torch-fidelity where it is installed."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common.data.source import to_pixels
from common.errors import DataError


def load_inception(device: torch.device, weights: Path | None = None) -> Callable[[Tensor], Tensor]:
    """The 2,048 pooled features of the original TensorFlow weights.

    Args:
        device: where to compute.
        weights: torch-fidelity's weight file; by default it downloads it on first use.

    Returns:
        (B, 1 or 3, S, S) float32 in [-1, 1] -> (B, 2048) float32.

    Raises:
        DataError: torch-fidelity or the weights cannot be had.
    """
    if weights is not None and not weights.exists():
        raise DataError(f"Inception weights {weights} do not exist")
    # It imports torchvision, which is slow, and which some installations only load with our help.
    from common.compat import import_torchvision

    import_torchvision()
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise DataError(
            f'features "inception" need torch-fidelity ({error}; pip install torch-fidelity); '
            'without it use "small" or "lenet"'
        ) from error
    try:
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048"],
            feature_extractor_weights_path=None if weights is None else str(weights),
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot get the Inception weights: {reason}") from error
    network = network.to(device).eval()

    def embed(images: Tensor) -> Tensor:
        features: Tensor = network(to_pixels(images).expand(-1, 3, -1, -1))[0]
        return features

    return embed
