"""VGG-19 with batch normalisation, trained on ImageNet: the published recipe's encoder.

Simonyan and Zisserman, arXiv 1409.1556; weights and names of the tensors are torchvision's.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.encoders.base import Architecture, FeatureEncoder, fold, tensors_digest
from common.errors import ModelFileError
from common.seeding import derive_seed

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)

VGG19: Final = Architecture(
    "vgg19_bn",
    widths=(64,) * 2 + (128,) * 2 + (256,) * 4 + (512,) * 8,
    pooled=frozenset({1, 3, 7, 11}),
    # ImageNet's constants are for pixels in [0, 1].
    mean=tuple(2 * m - 1 for m in _IMAGENET_MEAN),  # type: ignore[arg-type]
    std=tuple(2 * s for s in _IMAGENET_STD),  # type: ignore[arg-type]
)
_NORM: Final = ("weight", "bias", "running_mean", "running_var")


def load_vgg19_bn(
    layers: tuple[int, ...] | None = None,
    pool: int | None = None,
    weights: Path | None = None,
    random_seed: int | None = None,
) -> FeatureEncoder:
    """VGG-19; layers 0 to 15 are the ReLUs after its sixteen convolutions.

    Args:
        layers: feature layers to return; by default all sixteen.
        pool: average-pool feature maps down to pool x pool.
        weights: torchvision's `vgg19_bn` state dict as `.pth` or `.safetensors`; by default
            torchvision downloads it on first use and keeps it.
        random_seed: draw He-normal weights from this seed instead, for timing.

    Raises:
        ConfigError: a layer does not exist.
        ModelFileError: the weights are missing, do not fit, or cannot be downloaded.
    """
    if random_seed is not None:
        state = _random(random_seed)
    elif weights is not None:
        state = _read(weights)
    else:
        state = _download()
    source = weights or "the weights of vgg19_bn"
    used: dict[str, Tensor] = {}
    pairs = []
    inputs = 3
    for index, width in enumerate(VGG19.widths):
        at = _position(index)
        shapes = {f"features.{at}.weight": (width, inputs, 3, 3), f"features.{at}.bias": (width,)}
        shapes |= {f"features.{at + 1}.{key}": (width,) for key in _NORM}
        for name, shape in shapes.items():
            if name not in state or tuple(state[name].shape) != shape:
                raise ModelFileError(f"{source} is no vgg19_bn: {name} does not fit")
            used[name] = state[name].float()
        norm = {key: used[f"features.{at + 1}.{key}"] for key in _NORM}
        norm["conv_bias"] = used[f"features.{at}.bias"]
        pairs.append(fold(used[f"features.{at}.weight"], norm))
        inputs = width
    return FeatureEncoder(VGG19, pairs, tensors_digest(used), layers, pool)


def _position(index: int) -> int:
    """Where torchvision's flat list of layers has convolution `index`."""
    return 3 * index + sum(1 for pooled in VGG19.pooled if pooled < index)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"cannot read encoder weights {path}: {reason}") from error
    if not isinstance(state, dict):
        raise ModelFileError(f"{path} holds no state dict")
    return state


def _download() -> Mapping[str, Tensor]:
    # torchvision is slow to import, and only the download needs it.
    from common.compat import torchvision

    published = torchvision.models.VGG19_BN_Weights.IMAGENET1K_V1
    try:
        state: Mapping[str, Tensor] = published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ModelFileError(
            f"cannot download the weights of vgg19_bn ({error}); fetch {published.url} "
            "elsewhere and give the file"
        ) from error
    return state


def _random(seed: int) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "random-encoder"))
    state: dict[str, Tensor] = {}
    inputs = 3
    for index, width in enumerate(VGG19.widths):
        at = _position(index)
        weight = torch.randn((width, inputs, 3, 3), generator=generator)
        state[f"features.{at}.weight"] = weight * math.sqrt(2 / (9 * inputs))
        state[f"features.{at}.bias"] = torch.zeros(width)
        for key in _NORM:
            one = key in ("weight", "running_var")
            state[f"features.{at + 1}.{key}"] = torch.ones(width) if one else torch.zeros(width)
        inputs = width
    return state
