"""Generator and discriminator of the peers, after DCGAN (Radford et al., arXiv 1511.06434).

Where the run draws classes, both are told the class: conditional GANs (Mirza and Osindero,
arXiv 1411.1784), whose labels enter as constant planes beside the input.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.measure import Setting
from client.local_images import LocalImages
from common.config import RunConfig
from common.data import ImageSource, load_images, partition, split_by, to_pixels, to_unit
from common.errors import ConfigError
from common.model.architecture import BASE
from common.model.generator import balanced_labels
from common.state import GlobalState
from server.average import StateAverage

RATE: Final = 2e-4
"""Adam's learning rate, DCGAN's own."""
FLOAT_BYTES: Final = 4
LABEL_BYTES: Final = 1
_BATCH: Final = 250


class Labelled(NamedTuple):
    """Images, and the class of each where the run draws classes.

    Attributes:
        images: (B, C, S, S) in [-1, 1].
        labels: (B,) int64 on the same device, or None.
    """

    images: Tensor
    labels: Tensor | None

    def detached(self) -> Labelled:
        """The same images without the graph that made them."""
        return Labelled(self.images.detach(), self.labels)


class Network(nn.Sequential):
    """Layers whose input has a constant plane per class beside it: 1 for its own, else 0.

    Args:
        classes: planes; 0 for none.
        layers: in forward order.
    """

    def __init__(self, classes: int, layers: Iterable[nn.Module]) -> None:
        super().__init__(*layers)
        self._classes = classes

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and, where there are classes, (B,) labels."""
        if labels is not None:
            planes = F.one_hot(labels, self._classes).to(x.dtype)[:, :, None, None]
            x = torch.cat([x, planes.expand(-1, -1, *x.shape[2:])], dim=1)
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return out


def generator(config: RunConfig) -> Network:
    """(B, latent, 1, 1), and labels where there are classes -> (B, C, S, S) in [-1, 1].

    Twice the config's width makes it as large as PRISM's: at width 16 and 32 grey pixels 426,945
    weights against 418,192, and 20,480 more of each for ten classes. Normalisation keeps no
    statistics; batches always bring theirs.
    """
    model, classes = config.model, len(config.classes)
    doublings = (model.image_size // BASE).bit_length() - 1
    wide = model.width << doublings
    layers: list[nn.Module] = [nn.ConvTranspose2d(model.latent + classes, wide, BASE, bias=False)]
    for doubling in range(doublings):
        layers += [nn.BatchNorm2d(wide, track_running_stats=False), nn.ReLU(inplace=True)]
        last = doubling == doublings - 1
        outputs = config.channels if last else wide // 2
        layers.append(nn.ConvTranspose2d(wide, outputs, 4, stride=2, padding=1, bias=last))
        wide //= 2
    return _initialised(Network(classes, [*layers, nn.Tanh()]))


def discriminator(config: RunConfig) -> Network:
    """(B, C, S, S) in [-1, 1], and labels where there are classes -> (B, 1) logits.

    Positive is for real: for a real image of just this class, where it is told one.
    """
    model, classes = config.model, len(config.classes)
    doublings = (model.image_size // BASE).bit_length() - 1
    layers: list[nn.Module] = []
    inputs, outputs = config.channels + classes, 2 * model.width
    for halving in range(doublings):
        layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=halving == 0))
        if halving:
            layers.append(nn.BatchNorm2d(outputs, track_running_stats=False))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        inputs, outputs = outputs, 2 * outputs
    return _initialised(Network(classes, [*layers, nn.Conv2d(inputs, 1, BASE), nn.Flatten()]))


def parameter_bytes(network: nn.Module) -> int:
    """Bytes of all weights as float32."""
    return FLOAT_BYTES * sum(p.numel() for p in network.parameters())


def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
    """DCGAN's optimiser."""
    return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.999))


def discriminator_loss(judge: nn.Module, real: Labelled, fake: Labelled) -> Tensor:
    """Cross-entropy of telling real from generated, each batch normalised by itself."""
    on_real, on_fake = judge(*real), judge(*fake)
    return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()


def generator_loss(judge: nn.Module, fake: Labelled) -> Tensor:
    """Non-saturating: cross-entropy of being taken for real."""
    return F.softplus(-judge(*fake)).mean()


def client_images(config: RunConfig, source: ImageSource, device: torch.device) -> list[Labelled]:
    """Each client's images, all on the device.

    Where the run draws classes, just those that PRISM's clients train on; else all of them in one
    group, for to a GAN cells are nothing.
    """
    parts = []
    for part in partition(split_by(source, config), config.data, config.seed):
        own = LocalImages(config, source, part)
        if config.classes:
            own = LocalImages.of(config, source, part)
        images = load_images(source, own.indices, config.model.image_size, config.channels)
        labels = None if own.labels is None else torch.from_numpy(own.labels).to(device)
        parts.append(Labelled(to_unit(images.to(device)), labels))
    return parts


def refuse_masks(setting: Setting) -> None:
    """A choice of masks means nothing to a GAN.

    Raises:
        ConfigError: one was made.
    """
    if setting.masks is not None:
        raise ConfigError("a GAN has no masks: leave out --masks")


def taught_classes(parts: Iterable[Labelled]) -> tuple[int, ...]:
    """Labels of which some client has images, ascending; none where labels are ignored."""
    held = [set(part.labels.tolist()) for part in parts if part.labels is not None]
    return tuple(sorted(set().union(*held)))


def batches(part: Labelled, size: int, noise: torch.Generator) -> Iterator[Labelled]:
    """Random batches of a client's images without end."""
    images, labels = part
    while True:
        chosen = torch.randint(len(images), (size,), generator=noise, device=noise.device)
        yield Labelled(images[chosen], None if labels is None else labels[chosen])


def noise_vectors(config: RunConfig, count: int, noise: torch.Generator) -> Tensor:
    """(count, latent, 1, 1) standard normal."""
    return torch.randn(count, config.model.latent, 1, 1, generator=noise, device=noise.device)


class AveragedGenerator:
    """What is judged of a peer: the same average over rounds that the product exports.

    It is a `common.model.sampler.Sampler`, so peers are judged just as exported models are.

    Args:
        config: the run.
        network: the generator before the first round.
        learned: labels that it is taught; none where labels are ignored.
    """

    def __init__(self, config: RunConfig, network: Network, learned: Collection[int] = ()) -> None:
        self.class_names = config.classes
        self.learned = tuple(learned)
        self._config = config
        self._network = copy.deepcopy(network)
        self._average = StateAverage(config, _weights(network, 0))

    def add(self, round_: int, network: nn.Module) -> None:
        """Take in the generator that a round made; rounds count from 1."""
        self._average.add(_weights(network, round_))

    def sample(self, n: int, seed: int = 0, labels: NDArray[np.int64] | None = None) -> Tensor:
        """See `Sampler.sample`; batches bring their own statistics, in training as here."""
        device = next(self._network.parameters()).device
        weights = torch.from_numpy(self._average.state.weights.copy()).to(device)
        vector_to_parameters(weights, self._network.parameters())
        chosen = balanced_labels(self.learned, n) if labels is None else torch.from_numpy(labels)
        return sample(self._network, self._config, n, seed, chosen)


def _weights(network: nn.Module, round_: int) -> GlobalState:
    vector = parameters_to_vector(network.parameters())
    return GlobalState(round_, vector.detach().cpu().numpy().copy())


@torch.no_grad()
def sample(
    network: Network, config: RunConfig, count: int, seed: int = 0, labels: Tensor | None = None
) -> Tensor:
    """(count, C, S, S) uint8 images on the CPU; equal arguments give equal images."""
    device = next(network.parameters()).device
    noise = torch.Generator(device).manual_seed(seed)
    images = []
    for start in range(0, count, _BATCH):
        here = slice(start, min(start + _BATCH, count))
        chosen = None if labels is None else labels[here].to(device)
        z = noise_vectors(config, here.stop - start, noise)
        images.append(to_pixels(network(z, chosen)).cpu())
    return torch.cat(images)


def _initialised(network: Network) -> Network:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return network
