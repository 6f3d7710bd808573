"""FedAvg-GAN: every client trains a GAN on its part; the server averages both networks.

Rasouli et al., "FedGAN", arXiv 2006.07228; McMahan et al., arXiv 1602.05629. Clients count the
same, as they do in PRISM. Each round every client sends and receives both networks. Where the
run draws classes, a client asks its generator for those of its real batch.

    python -m benchmarks.peers.fedavg_gan configs/mnist.toml --data-dir data --json
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Measured, Meter, Setting, command, grid_of
from benchmarks.peers.networks import (
    RATE,
    AveragedGenerator,
    Labelled,
    adam,
    batches,
    client_images,
    discriminator,
    discriminator_loss,
    generator,
    generator_loss,
    noise_vectors,
    parameter_bytes,
    refuse_masks,
    taught_classes,
)
from common.config import RunConfig
from common.seeding import derive_seed


class GanClient:
    """One client: its images, its copies of both networks, its optimisers."""

    def __init__(self, config: RunConfig, part: Labelled, rank: int, rate: float) -> None:
        self._config = config
        self._noise = torch.Generator(part.images.device)
        self._noise.manual_seed(derive_seed(config.seed, "peer-noise", rank))
        self._batches = batches(part, config.train.batch_size, self._noise)
        self.networks = [net(config).to(part.images.device) for net in (generator, discriminator)]
        self._optimisers = [adam(network, rate) for network in self.networks]

    def train(self, state: Sequence[dict[str, Tensor]]) -> None:
        """Start from the server's networks; one step of each per local step."""
        for network, values in zip(self.networks, state, strict=True):
            network.load_state_dict(values)
        maker, judge = self.networks
        of_maker, of_judge = self._optimisers
        for _ in range(self._config.train.local_steps):
            real = next(self._batches)
            z = noise_vectors(self._config, len(real.images), self._noise)
            fake = Labelled(maker(z, real.labels), real.labels)
            _descend(of_judge, discriminator_loss(judge, real, fake.detached()))
            _descend(of_maker, generator_loss(judge, fake))


def average(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The mean of each tensor over the clients."""
    states = [network.state_dict() for network in networks]
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def measure(setting: Setting, rate: float = RATE) -> Iterator[Measured]:
    """Run all rounds; one line per evaluation."""
    config, device = setting.config, setting.device
    refuse_masks(setting)
    torch.manual_seed(derive_seed(config.seed, "peer-weights"))
    parts = client_images(config, setting.source(), device)
    clients = [GanClient(config, part, rank, rate) for rank, part in enumerate(parts)]
    state = [copy.deepcopy(network.state_dict()) for network in clients[0].networks]
    judge = setting.evaluator()
    size = sum(parameter_bytes(network) for network in clients[0].networks)
    maker = clients[0].networks[0]
    averaged = AveragedGenerator(config, maker, taught_classes(parts))
    meter = Meter(len(clients), sum(p.numel() for p in maker.parameters()))
    for done in range(1, config.rounds + 1):
        started = time.monotonic()
        for client in clients:
            client.train(state)
        state = [average([client.networks[i] for client in clients]) for i in range(2)]
        meter.add(size * len(clients), size * len(clients), time.monotonic() - started)
        maker.load_state_dict(state[0])
        averaged.add(done, maker)
        if setting.due(done):
            images, quality = setting.judged(judge, averaged, done)
            yield Measured(meter.line(done) | quality, images, grid_of(averaged))


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


if __name__ == "__main__":
    typer.run(command(measure, "Average GANs and print their quality against their bytes."))
