"""MD-GAN: one generator on the server, one discriminator per client, swapped now and then.

Hardy, Le Merrer and Sericola, arXiv 1811.03850. Each iteration the server sends every client
two generated batches; the client trains its discriminator on one and returns the error of the
other, by which the server moves the generator. After every pass over the data the
discriminators change places. A round is `train.local_steps` iterations. Where the run draws
classes, the server asks its generator for all of them in equal shares, and the labels travel with
the batches.

    python -m benchmarks.peers.md_gan configs/mnist.toml --data-dir data --json
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
import typer
from torch import Tensor, nn

from benchmarks.measure import Measured, Meter, Setting, command, grid_of
from benchmarks.peers.networks import (
    FLOAT_BYTES,
    LABEL_BYTES,
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
from common.model.generator import balanced_labels
from common.seeding import derive_seed


class MdGan:
    """The server's generator and the clients' discriminators.

    Args:
        config: the run.
        parts: each client's images.
        rate: Adam's learning rate.
    """

    def __init__(self, config: RunConfig, parts: list[Labelled], rate: float) -> None:
        self._config = config
        device = parts[0].images.device
        self._noise = torch.Generator(device)
        self._noise.manual_seed(derive_seed(config.seed, "peer-noise", 0))
        self._batches = [batches(part, config.train.batch_size, self._noise) for part in parts]
        self.generator = generator(config).to(device)
        self._of_generator = adam(self.generator, rate)
        self._judges = [discriminator(config).to(device) for _ in parts]
        # A discriminator travels with its optimiser's state left behind, as its owner's own.
        self._of_judges = [adam(judge, rate) for judge in self._judges]
        self._distinct = max(1, int(math.log(len(parts))))
        mean_size = sum(len(part.images) for part in parts) / len(parts)
        self._swap_every = max(1, round(mean_size / config.train.batch_size))
        self._iteration = 0
        self._classes = taught_classes(parts)
        self._labels_drawn = 0

    def iterate(self) -> tuple[int, int]:
        """One iteration; the bytes that all clients send and receive."""
        clients = len(self._judges)
        generated = [self._generate() for _ in range(self._distinct)]
        with_graph = [batch.images for batch in generated]
        feedback = [torch.zeros_like(images) for images in with_graph]
        for rank in range(clients):
            own, other = rank % self._distinct, (rank + 1) % self._distinct
            self._train_judge(rank, generated[other].detached())
            feedback[own] += self._feedback(rank, generated[own].detached()) / clients
        self._of_generator.zero_grad()
        torch.autograd.backward(with_graph, feedback)
        self._of_generator.step()
        error = with_graph[0].numel() * FLOAT_BYTES
        labels = 0 if generated[0].labels is None else len(generated[0].labels) * LABEL_BYTES
        up, down = clients * error, clients * (error + labels) * min(2, self._distinct)
        self._iteration += 1
        if self._iteration % self._swap_every == 0 and clients > 1:
            self._swap()
            moved = sum(parameter_bytes(judge) for judge in self._judges)
            up, down = up + moved, down + moved
        return up, down

    def _generate(self) -> Labelled:
        """A batch with its graph; its classes go on in turn where those of the last one ended."""
        size = self._config.train.batch_size
        labels = balanced_labels(self._classes, size, start=self._labels_drawn)
        labels = None if labels is None else labels.to(self._noise.device)
        self._labels_drawn += size
        z = noise_vectors(self._config, size, self._noise)
        return Labelled(self.generator(z, labels), labels)

    def _train_judge(self, rank: int, fake: Labelled) -> None:
        optimiser = self._of_judges[rank]
        optimiser.zero_grad()
        loss = discriminator_loss(self._judges[rank], next(self._batches[rank]), fake)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _feedback(self, rank: int, fake: Labelled) -> Tensor:
        """What a client returns: the gradient of the generator's loss by the images."""
        fake.images.requires_grad_()
        (gradient,) = torch.autograd.grad(generator_loss(self._judges[rank], fake), fake.images)
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
    refuse_masks(setting)
    torch.manual_seed(derive_seed(config.seed, "peer-weights"))
    parts = client_images(config, setting.source(), device)
    federation = MdGan(config, parts, rate)
    judge = setting.evaluator()
    averaged = AveragedGenerator(config, federation.generator, taught_classes(parts))
    parameters = sum(p.numel() for p in federation.generator.parameters())
    meter = Meter(config.data.clients, parameters)
    for done in range(1, config.rounds + 1):
        started = time.monotonic()
        moved = [federation.iterate() for _ in range(config.train.local_steps)]
        up, down = (sum(bytes_) for bytes_ in zip(*moved, strict=True))
        meter.add(up, down, time.monotonic() - started)
        averaged.add(done, federation.generator)
        if setting.due(done):
            images, quality = setting.judged(judge, averaged, done)
            yield Measured(meter.line(done) | quality, images, grid_of(averaged))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


if __name__ == "__main__":
    typer.run(command(measure, "Run MD-GAN and print its quality against its bytes."))
