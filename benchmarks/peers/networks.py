"""Generator and discriminator of the peers, after DCGAN (Radford et al., arXiv 1511.06434)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from common.config import RunConfig
from common.data import ImageSource, load_images, partition, to_pixels, to_unit
from common.model.architecture import BASE
from common.state import GlobalState
from server.average import StateAverage

RATE: Final = 2e-4
"""Adam's learning rate, DCGAN's own."""
FLOAT_BYTES: Final = 4
_BATCH: Final = 250


def generator(config: RunConfig) -> nn.Sequential:
    """(B, latent, 1, 1) -> (B, C, S, S) in [-1, 1].

    Twice the config's width makes it as large as PRISM's: 426,945 weights against 418,192 at
    width 16 and 32 grey pixels. Normalisation keeps no statistics; batches always bring theirs.
    """
    model = config.model
    doublings = (model.image_size // BASE).bit_length() - 1
    wide = model.width << doublings
    layers: list[nn.Module] = [nn.ConvTranspose2d(model.latent, wide, BASE, bias=False)]
    for doubling in range(doublings):
        layers += [nn.BatchNorm2d(wide, track_running_stats=False), nn.ReLU(inplace=True)]
        last = doubling == doublings - 1
        outputs = config.channels if last else wide // 2
        layers.append(nn.ConvTranspose2d(wide, outputs, 4, stride=2, padding=1, bias=last))
        wide //= 2
    return _initialised(nn.Sequential(*layers, nn.Tanh()))


def discriminator(config: RunConfig) -> nn.Sequential:
    """(B, C, S, S) in [-1, 1] -> (B, 1) logits, positive for real."""
    model = config.model
    doublings = (model.image_size // BASE).bit_length() - 1
    layers: list[nn.Module] = []
    inputs, outputs = config.channels, 2 * model.width
    for halving in range(doublings):
        layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=halving == 0))
        if halving:
            layers.append(nn.BatchNorm2d(outputs, track_running_stats=False))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        inputs, outputs = outputs, 2 * outputs
    return _initialised(nn.Sequential(*layers, nn.Conv2d(inputs, 1, BASE), nn.Flatten()))


def parameter_bytes(network: nn.Module) -> int:
    """Bytes of all weights as float32."""
    return FLOAT_BYTES * sum(p.numel() for p in network.parameters())


def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
    """DCGAN's optimiser."""
    return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.999))


def discriminator_loss(judge: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of telling real from generated, each batch normalised by itself."""
    on_real, on_fake = judge(real), judge(fake)
    return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()


def generator_loss(judge: nn.Module, fake: Tensor) -> Tensor:
    """Non-saturating: cross-entropy of being taken for real."""
    return F.softplus(-judge(fake)).mean()


def client_images(config: RunConfig, source: ImageSource, device: torch.device) -> list[Tensor]:
    """Each client's part of the data set, (n, C, S, S) float32 in [-1, 1] on the device."""
    whole = len(source) if source.labels is None else source.labels
    return [
        to_unit(load_images(source, part, config.model.image_size, config.channels).to(device))
        for part in partition(whole, config.data, config.seed)
    ]


def batches(images: Tensor, size: int, noise: torch.Generator) -> Iterator[Tensor]:
    """Random batches without end."""
    while True:
        chosen = torch.randint(len(images), (size,), generator=noise, device=noise.device)
        yield images[chosen]


def noise_vectors(config: RunConfig, count: int, noise: torch.Generator) -> Tensor:
    """(count, latent, 1, 1) standard normal."""
    return torch.randn(count, config.model.latent, 1, 1, generator=noise, device=noise.device)


class AveragedGenerator:
    """What is judged of a peer: the same average over rounds that the product exports.

    Args:
        config: the run.
        network: the generator before the first round.
    """

    def __init__(self, config: RunConfig, network: nn.Module) -> None:
        self._config = config
        self._network = copy.deepcopy(network)
        self._average = StateAverage(config, _weights(network, 0))

    def add(self, round_: int, network: nn.Module) -> None:
        """Take in the generator that a round made; rounds count from 1."""
        self._average.add(_weights(network, round_))

    def sample(self, count: int, device: torch.device) -> Tensor:
        """(count, C, S, S) uint8 images of the average on the CPU."""
        weights = torch.from_numpy(self._average.state.weights.copy()).to(device)
        vector_to_parameters(weights, self._network.parameters())
        return sample(self._network, self._config, count, device)


def _weights(network: nn.Module, round_: int) -> GlobalState:
    vector = parameters_to_vector(network.parameters())
    return GlobalState(round_, vector.detach().cpu().numpy().copy())


@torch.no_grad()
def sample(network: nn.Module, config: RunConfig, count: int, device: torch.device) -> Tensor:
    """(count, C, S, S) uint8 images on the CPU; equal networks give equal images."""
    noise = torch.Generator(device).manual_seed(0)
    images = []
    for start in range(0, count, _BATCH):
        z = noise_vectors(config, min(_BATCH, count - start), noise)
        images.append(to_pixels(network(z)).cpu())
    return torch.cat(images)


def _initialised(network: nn.Sequential) -> nn.Sequential:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return network
