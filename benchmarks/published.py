"""One local step as the paper describes it, written down directly: the reference for speed.

PRISM (arXiv 2503.08085), sections 3 and 4, over GFMN (dos Santos et al., arXiv 1904.02762):
every layer has scores of its own, whose mask NumPy samples; the encoder is a plain VGG-19 with
batch normalisation in evaluation mode; its sixteen feature layers are concatenated into one
(B, F) matrix, whose mean and variance autograd differentiates; the moving averages and the
generator each have an Adam optimiser. Nothing here is used by the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from client.loss import Moments
from common.config import RunConfig
from common.encoders import FeatureEncoder
from common.model.architecture import Architecture, LayerSpec

Uniform = NDArray[np.float32]


class _Bernoulli(torch.autograd.Function):
    """A mask that NumPy samples; straight-through, scaled by theta as in the released code."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, uniform: Uniform | None) -> Tensor:
        ctx.save_for_backward(theta)
        chances = theta.detach().numpy()
        drawn = np.random.binomial(1, chances) if uniform is None else uniform < chances  # noqa: NPY002
        return torch.from_numpy(drawn.astype(np.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (theta,) = ctx.saved_tensors
        return gradients[0] * theta, None


class MaskedLayer(nn.Module):
    """A convolution with frozen weights and trained scores.

    Attributes:
        uniform: the draws that the next mask is made of, or None to sample it.
    """

    def __init__(self, spec: LayerSpec, weight: Tensor, scores: Tensor) -> None:
        super().__init__()
        self.transposed = spec.kind == "transposed"
        self.weight = nn.Parameter(weight.view(spec.shape).clone(), requires_grad=False)
        self.scores = nn.Parameter(scores.view(spec.shape).clone())
        self.uniform: Uniform | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, ...)."""
        theta = torch.sigmoid(self.scores)
        mask: Tensor = _Bernoulli.apply(theta, self.uniform)  # type: ignore[no-untyped-call]
        weight = self.weight * mask
        if self.transposed:
            return F.conv_transpose2d(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class _Block(nn.Module):
    def __init__(self, layers: Sequence[MaskedLayer], wide: int, narrow: int) -> None:
        super().__init__()
        conv1, conv2, bypass = layers
        self.model = nn.Sequential(
            nn.BatchNorm2d(wide, affine=False),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            conv1,
            nn.BatchNorm2d(narrow, affine=False),
            nn.ReLU(),
            conv2,
        )
        self.bypass = nn.Sequential(bypass, nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x) + self.bypass(x)
        return out


class PublishedGenerator(nn.Module):
    """The ResNet generator as modules; (B, latent, 1, 1) -> (B, C, S, S).

    Args:
        architecture: shapes.
        weights: (d,) frozen weights.
        scores: (d,) initial logits.
    """

    def __init__(self, architecture: Architecture, weights: Tensor, scores: Tensor) -> None:
        super().__init__()
        self.layers = [
            MaskedLayer(spec, weights[part], scores[part])
            for spec in architecture.layers
            for part in [slice(spec.offset, spec.offset + spec.count)]
        ]
        wide = architecture.base_width
        stages: list[nn.Module] = [self.layers[0]]
        for block in range(architecture.blocks):
            stages.append(_Block(self.layers[1 + 3 * block : 4 + 3 * block], wide, wide // 2))
            wide //= 2
        stages += [nn.BatchNorm2d(wide, affine=False), nn.ReLU(), self.layers[-1], nn.Tanh()]
        self.net = nn.Sequential(*stages)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        images: Tensor = self.net(z)
        return images


class PublishedEncoder(nn.Module):
    """VGG-19 with batch normalisation as torchvision builds it, frozen, in evaluation mode.

    Args:
        folded: where the convolutions come from; normalisation then changes nothing, but
            costs what it costs.
    """

    def __init__(self, folded: FeatureEncoder) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for index, convolution in enumerate(folded.convolutions):
            assert isinstance(convolution, nn.Conv2d)
            norm = nn.BatchNorm2d(convolution.out_channels)
            nn.init.constant_(norm.running_var, 1 - norm.eps)  # type: ignore[arg-type]
            stages += [convolution, norm, nn.ReLU(inplace=True)]
            if index in folded.architecture.pooled:
                stages.append(nn.MaxPool2d(2))
        self.stages = nn.ModuleList(stages)
        self.mean, self.std = folded.mean, folded.std
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, S, S) in [-1, 1] -> (B, F), all feature layers in one matrix."""
        x = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
        features = []
        for stage in self.stages:
            x = stage(x)
            if isinstance(stage, nn.ReLU):
                features.append(x.view(len(x), -1))
        return torch.cat(features, dim=1)


class PublishedRecipe:
    """Local training, one step at a time.

    Args:
        config: the run.
        encoder: whose weights are used.
        real: moments of the real images, of one group.
        weights: (d,) frozen weights.
        scores: (d,) initial logits.
    """

    def __init__(
        self,
        config: RunConfig,
        encoder: FeatureEncoder,
        real: Moments,
        weights: Tensor,
        scores: Tensor,
    ) -> None:
        train = config.train
        self.generator = PublishedGenerator(Architecture.of(config), weights, scores)
        self.encoder = PublishedEncoder(encoder)
        self.real = real
        self.reduction = train.moving_average_loss
        features = real.mean.numel()
        self.net_mean = nn.Linear(features, 1, bias=False)
        self.net_variance = nn.Linear(features, 1, bias=False)
        for net in (self.net_mean, self.net_variance):
            nn.init.zeros_(net.weight)
        trained = [layer.scores for layer in self.generator.layers]
        rate = train.moving_average_rate
        self.optimisers = [
            torch.optim.Adam(self.net_mean.parameters(), lr=rate, betas=(0.5, 0.999)),
            torch.optim.Adam(self.net_variance.parameters(), lr=rate, betas=(0.5, 0.999)),
            torch.optim.Adam(trained, lr=train.learning_rate, betas=(0.5, 0.999)),
        ]

    def step(self, z: Tensor, uniform: Uniform | None = None) -> float:
        """One local step; its generator loss.

        Args:
            z: (B, latent) noise.
            uniform: (d,) draws for the masks, or None to sample them.
        """
        for layer, draws in zip(self.generator.layers, self._per_layer(uniform), strict=True):
            layer.uniform = draws
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        features = self.encoder(self.generator(z[:, :, None, None]))
        generated = [torch.mean(features, 0), torch.var(features, 0, correction=0)]
        loss = torch.zeros(())
        pairs = zip(
            (self.net_mean, self.net_variance),
            (self.real.mean[0], self.real.variance[0]),
            generated,
            self.optimisers,
            strict=False,
        )
        for net, real, fake, optimiser in pairs:
            difference = (real - fake).detach().view(1, -1)
            F.mse_loss(net.weight, difference, reduction=self.reduction).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            weight = net.weight.detach().view(-1)
            loss = loss + weight @ real - weight @ fake
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers[2].step()
        return float(loss.detach())

    def _per_layer(self, uniform: Uniform | None) -> Iterator[Uniform | None]:
        start = 0
        for layer in self.generator.layers:
            count, shape = layer.scores.numel(), layer.scores.shape
            part = None if uniform is None else uniform[start : start + count].reshape(shape)
            yield part
            start += count
