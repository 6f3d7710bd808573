"""What every frozen feature extractor is: 3x3 convolutions, ReLU, max-pooling."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.encoders.rounding import round_kernels
from common.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder.

    Attributes:
        name: as the config gives it.
        widths: channels of each convolution; each is followed by a ReLU, its feature layer.
        pooled: convolutions whose ReLU is followed by a 2x2 max-pool.
        mean: (3,) what is subtracted from the pixels in [-1, 1].
        std: (3,) what they are then divided by.
    """

    name: str
    widths: tuple[int, ...]
    pooled: frozenset[int]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class FeatureEncoder(nn.Module):
    """A frozen encoder; no gradient reaches its weights, and no batch its statistics.

    Batch normalisation is folded into the convolutions, so training and evaluation mode are
    the same thing and an image's features do not depend on the images beside it. Features
    are ReLU outputs and therefore not negative.

    Args:
        architecture: the shape.
        convolutions: per convolution the folded weight (out, in, 3, 3) and bias (out,).
        digest: what `digest` returns, taken over the weights as they were published.
        layers: feature layers to return, by index from 0; by default all of them.
        pool: average-pool each feature map down to pool x pool, where it is larger.

    Raises:
        ConfigError: a layer does not exist or is named twice.
    """

    def __init__(
        self,
        architecture: Architecture,
        convolutions: Sequence[tuple[Tensor, Tensor]],
        digest: bytes,
        layers: Sequence[int] | None = None,
        pool: int | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = _checked(layers, architecture)
        self.pool = pool
        self._digest = digest
        self.convolutions = nn.ModuleList(
            _frozen_convolution(weight.float().contiguous(), bias.float().contiguous())
            for weight, bias in convolutions[: self.layers[-1] + 1]
        )
        # Where grey is not told apart by the normalisation, one input channel does for three.
        self._grey_folds = len(set(architecture.mean)) == len(set(architecture.std)) == 1
        self.grey_weight: Tensor
        self.mean: Tensor
        self.std: Tensor
        first = convolutions[0][0].float().sum(dim=1, keepdim=True)
        self.register_buffer("grey_weight", first, persistent=False)
        for name, values in (("mean", architecture.mean), ("std", architecture.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of the chosen layers, in the order of the layers.

        Args:
            images: (B, 1 or 3, S, S) float32 in [-1, 1]; grey counts as three equal channels.

        Returns:
            per layer (B, C, H, W), not negative; see `shapes`. Of the weights' type, and
            channels last, on which pooling costs a tenth.
        """
        return list(self.features(images))

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """As `forward`, one layer at a time, so that a caller need not hold them all."""
        stages = self._stages()
        x = _channels_last(self._first(stages[0], images).to(stages[-1].weight.dtype))
        for index, stage in enumerate(stages):
            x = F.relu_(x if index == 0 else stage(x))
            if index in self.layers:
                yield _pooled(x, self.pool)
            if index in self.architecture.pooled:
                x = F.max_pool2d(x, 2)

    def shapes(self, image_size: int) -> list[tuple[int, int, int]]:
        """(C, H, W) of each tensor that `forward` returns for images of side `image_size`."""
        out = []
        for layer in self.layers:
            side = image_size >> sum(1 for index in self.architecture.pooled if index < layer)
            side = side if self.pool is None else min(side, self.pool)
            out.append((self.architecture.widths[layer], side, side))
        return out

    def rounded(self) -> FeatureEncoder:
        """The same in bfloat16 but for the first convolution, which costs little and tells most."""
        other = copy.deepcopy(self)
        for index, stage in enumerate(self._stages()[1:], start=1):
            assert stage.bias is not None  # noqa: S101 - what the list was built from
            weight, bias = round_kernels(stage.weight), stage.bias.bfloat16()
            other.convolutions[index] = _frozen_convolution(weight, bias)
        return other

    def digest(self) -> bytes:
        """SHA-256 of the weights as published, whichever layers were chosen."""
        return self._digest

    def _stages(self) -> list[nn.Conv2d]:
        return [module for module in self.convolutions if isinstance(module, nn.Conv2d)]

    def _first(self, convolution: nn.Conv2d, images: Tensor) -> Tensor:
        if images.shape[1] == 1 and self._grey_folds:
            grey = _channels_last((images - self.mean[:, :1]) / self.std[:, :1])
            return F.conv2d(grey, self.grey_weight, convolution.bias, padding=1)
        colour = _channels_last((images - self.mean) / self.std)
        return F.conv2d(colour, convolution.weight, convolution.bias, padding=1)


def fold(weight: Tensor, norm: Mapping[str, Tensor], eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """A convolution without bias and the evaluation-mode batch normalisation after it, as one.

    Args:
        weight: (out, in, 3, 3) of the convolution.
        norm: `weight`, `bias`, `running_mean`, `running_var`, each (out,); optionally
            `conv_bias` (out,), which the convolution adds before.
        eps: of the normalisation.

    Returns:
        float32 weight (out, in, 3, 3) and bias (out,), computed in float64.
    """
    scale = norm["weight"].double() / torch.sqrt(norm["running_var"].double() + eps)
    offset = norm["conv_bias"].double() if "conv_bias" in norm else 0.0
    bias = norm["bias"].double() + (offset - norm["running_mean"].double()) * scale
    return (weight.double() * scale.view(-1, 1, 1, 1)).float(), bias.float()


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over names, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}:{values.dtype}:{tuple(values.shape)}:".encode())
        array = values.numpy()
        sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.digest()


def _frozen_convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    outputs, inputs = weight.shape[:2]
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, device="meta")
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias, requires_grad=False)
    return convolution


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pooled(x: Tensor, pool: int | None) -> Tensor:
    if pool is None or x.shape[-1] <= pool:
        return x
    return F.adaptive_avg_pool2d(x, pool)


def _checked(layers: Sequence[int] | None, architecture: Architecture) -> tuple[int, ...]:
    count = len(architecture.widths)
    chosen = tuple(range(count)) if layers is None else tuple(sorted(layers))
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(f"encoder.layers: name each layer once, and at least one: {chosen}")
    if chosen[0] < 0 or chosen[-1] >= count:
        raise ConfigError(
            f"encoder.layers: {architecture.name} has layers 0 to {count - 1}, not {chosen}"
        )
    return chosen
