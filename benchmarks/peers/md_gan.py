"""MD-GAN: one generator on the server, one discriminator per client, swapped now and then.

Hardy, Le Merrer and Sericola, arXiv 1811.03850. Each iteration the server sends every client
two generated batches; the client trains its discriminator on one and returns the error of the
other, by which the server moves the generator. After every pass over the data the
discriminators change places. A round is `train.local_steps` iterations.

    python -m benchmarks.peers.md_gan configs/mnist.toml --data-dir data --json
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Measured, Meter, Setting, command, quality_of
from benchmarks.peers.networks import (
    FLOAT_BYTES,
    RATE,
    AveragedGenerator,
    adam,
    batches,
    client_images,
    discriminator,
    discriminator_loss,
    generator,
    generator_loss,
    noise_vectors,
    parameter_bytes,
)
from common.config import RunConfig
from common.model.grid import UNLABELLED, Grid
from common.seeding import derive_seed


class MdGan:
    """The server's generator and the clients' discriminators.

    Args:
        config: the run.
        parts: each client's images, (n, C, S, S) in [-1, 1].
        rate: Adam's learning rate.
    """

    def __init__(self, config: RunConfig, parts: list[Tensor], rate: float) -> None:
        self._config = config
        device = parts[0].device
        self._noise = torch.Generator(device)
        self._noise.manual_seed(derive_seed(config.seed, "peer-noise", 0))
        self._batches = [batches(part, config.train.batch_size, self._noise) for part in parts]
        self.generator = generator(config).to(device)
        self._of_generator = adam(self.generator, rate)
        self._judges = [discriminator(config).to(device) for _ in parts]
        # A discriminator travels with its optimiser's state left behind, as its owner's own.
        self._of_judges = [adam(judge, rate) for judge in self._judges]
        self._distinct = max(1, int(math.log(len(parts))))
        mean_size = sum(len(part) for part in parts) / len(parts)
        self._swap_every = max(1, round(mean_size / config.train.batch_size))
        self._iteration = 0

    def iterate(self) -> tuple[int, int]:
        """One iteration; the bytes that all clients send and receive."""
        config = self._config
        size, clients = config.train.batch_size, len(self._judges)
        with_graph = [
            self.generator(noise_vectors(config, size, self._noise)) for _ in range(self._distinct)
        ]
        feedback = [torch.zeros_like(images) for images in with_graph]
        for rank in range(clients):
            own, other = rank % self._distinct, (rank + 1) % self._distinct
            self._train_judge(rank, with_graph[other].detach())
            feedback[own] += self._feedback(rank, with_graph[own].detach()) / clients
        self._of_generator.zero_grad()
        torch.autograd.backward(with_graph, feedback)
        self._of_generator.step()
        batch = with_graph[0].numel() * FLOAT_BYTES
        up, down = clients * batch, clients * batch * min(2, self._distinct)
        self._iteration += 1
        if self._iteration % self._swap_every == 0 and clients > 1:
            self._swap()
            moved = sum(parameter_bytes(judge) for judge in self._judges)
            up, down = up + moved, down + moved
        return up, down

    def _train_judge(self, rank: int, fake: Tensor) -> None:
        optimiser = self._of_judges[rank]
        optimiser.zero_grad()
        loss = discriminator_loss(self._judges[rank], next(self._batches[rank]), fake)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _feedback(self, rank: int, fake: Tensor) -> Tensor:
        """What a client returns: the gradient of the generator's loss by the images."""
        images = fake.requires_grad_()
        (gradient,) = torch.autograd.grad(generator_loss(self._judges[rank], images), images)
        return gradient

    def _swap(self) -> None:
        """Every client gets another's discriminator: a random cycle through all of them."""
        order = torch.randperm(len(self._judges), generator=self._noise, device=self._noise.device)
        ranks = order.tolist()
        states = [_copy(judge) for judge in self._judges]
        for sender, receiver in zip(ranks, [*ranks[1:], ranks[0]], strict=True):
            self._judges[receiver].load_state_dict(states[sender])


def measure(setting: Setting, rate: float = RATE) -> Iterator[Measured]:
    """Run all rounds; one line per evaluation."""
    config, device = setting.config, setting.device
    torch.manual_seed(derive_seed(config.seed, "peer-weights"))
    federation = MdGan(config, client_images(config, setting.source(), device), rate)
    judge = setting.evaluator()
    averaged = AveragedGenerator(config, federation.generator)
    parameters = sum(p.numel() for p in federation.generator.parameters())
    meter = Meter(config.data.clients, parameters)
    for done in range(1, config.rounds + 1):
        started = time.monotonic()
        moved = [federation.iterate() for _ in range(config.train.local_steps)]
        up, down = (sum(bytes_) for bytes_ in zip(*moved, strict=True))
        meter.add(up, down, time.monotonic() - started)
        averaged.add(done, federation.generator)
        if setting.due(done):
            images = averaged.sample(setting.samples, device)
            line = meter.line(done) | quality_of(judge, images)
            yield Measured(line, images, Grid.square(images[:UNLABELLED]))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


if __name__ == "__main__":
    typer.run(command(measure, "Run MD-GAN and print its quality against its bytes."))
