"""A federation in one process: the same trainer, codecs and aggregator, no network.

For measurements that would pay for N processes and a socket without learning from them; a run
of the real system with the same config ends in the same state. One JSON line per evaluation.

    python -m benchmarks.simulate configs/quickstart.toml --every 10
    python -m benchmarks.simulate configs/mnist.toml --data-dir data --set codec.up=flips
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from client.loss import Moments, real_moments
from client.trainer import PrismTrainer
from client.update import encode_update
from common.config import RunConfig, load_config
from common.data import ImageSource, load_images, open_source, partition
from common.encoders import load_encoder
from common.errors import PrismError
from common.model.export import build_model
from common.model.grid import save_grid
from common.quality import Evaluator
from common.state import GlobalState, entropy_bits
from common.steps import initial_state
from server.aggregate import make_aggregator
from server.broadcast import Broadcast

REAL_IMAGES = 5000
"""At most so many real images are held against as many generated ones."""


@dataclass(frozen=True)
class SimulatedRound:
    """What one round gave.

    Attributes:
        state: what the next round starts from.
        lam: MADA's lambda.
        up_bytes: payload bytes of all clients.
        down_bytes: payload bytes that bring one client from the last state to this one.
        seconds: of the round.
    """

    state: GlobalState
    lam: float | None
    up_bytes: int
    down_bytes: int
    seconds: float


def simulate(
    config: RunConfig, encoder: nn.Module, moments: Sequence[Moments], device: torch.device
) -> Iterator[SimulatedRound]:
    """Run all rounds with one trainer per client, one after another.

    Args:
        config: the run; every client takes part in every round.
        encoder: the frozen encoder that the clients share, on the device.
        moments: each client's real moments, on the device.
        device: where to train.
    """
    trainers = [PrismTrainer(config, encoder, real, device) for real in moments]
    broadcast = Broadcast(config, initial_state(config))
    for _ in range(config.rounds):
        started = time.monotonic()
        state = broadcast.state
        aggregator = make_aggregator(config, state, len(trainers))
        up_bytes = 0
        for rank, trainer in enumerate(trainers):
            name = f"client-{rank}"
            local = trainer.train(state, name)
            payloads = encode_update(
                config, state, local.scores, rank=rank, cohort_size=len(trainers), client=name
            )
            up_bytes += sum(len(payload) for payload in payloads)
            aggregator.fold(aggregator.decode(payloads, rank))
        closed = aggregator.close()
        held = (state.round, broadcast.digest)
        state = broadcast.publish(closed)
        down_bytes = sum(len(step.payload) for step in broadcast.steps(held))
        seconds = time.monotonic() - started
        yield SimulatedRound(state, closed.lam, up_bytes, down_bytes, seconds)


def client_moments(
    config: RunConfig, source: ImageSource, encoder: nn.Module, device: torch.device
) -> list[Moments]:
    """Each client's real moments over its part of the data set."""
    whole: int | np.ndarray = len(source) if source.labels is None else source.labels
    model = config.model
    return [
        real_moments(
            encoder,
            torch.split(load_images(source, part, model.image_size, config.channels), 128),
            device,
        )
        for part in partition(whole, config.data, config.seed)
    ]


def evaluator(config: RunConfig, source: ImageSource, features: str, cache: Path) -> Evaluator:
    """Judges on up to REAL_IMAGES held-out images, evenly spaced over the set."""
    count = min(REAL_IMAGES, len(source))
    indices = np.linspace(0, len(source) - 1, count).astype(np.int64)
    images = load_images(source, indices, config.model.image_size, config.channels)
    labels = None if source.labels is None else source.labels[indices]
    return Evaluator(images, labels, features, cache=cache)


def main(
    config: Annotated[Path, typer.Argument(help="Run config.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    features: Annotated[str, typer.Option(help="lenet, small or inception.")] = "lenet",
    every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations.")] = 10,
    samples: Annotated[int, typer.Option(help="Generated images a evaluation.")] = 2000,
    picture: Annotated[Path | None, typer.Option(help="PNG of the last samples.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where classifiers are kept.")] = Path("build/cache"),
) -> None:
    """Simulate one run and print its quality against its bytes."""
    if threads:
        torch.set_num_threads(threads)
    try:
        run = load_config(config, override or ())
        source = open_source(run.data.name, data_dir)
        judge = evaluator(run, open_source(run.data.name, data_dir, train=True), features, cache)
        on = torch.device(device)
        encoder = load_encoder(run.encoder.name, run.encoder.layers, run.encoder.pool).to(on)
        moments = client_moments(run, source, encoder, on)
        up_bytes, down_bytes, seconds = 0, 0, 0.0
        for done in simulate(run, encoder, moments, on):
            up_bytes += done.up_bytes
            down_bytes += done.down_bytes * len(moments)
            seconds += done.seconds
            if done.state.round % every and done.state.round != run.rounds:
                continue
            model = build_model(run, done.state)
            images = model.sample(samples)
            quality = judge.evaluate(images).as_dict()
            quality.pop("shares", None)
            line = {
                "rounds": done.state.round,
                "lambda": done.lam,
                "entropy_bits": entropy_bits(done.state.scores),
                "up_bytes": up_bytes,
                "down_bytes": down_bytes,
                "bits_up": 8 * done.up_bytes / len(moments) / done.state.dimension,
                "bits_down": 8 * done.down_bytes / done.state.dimension,
                "seconds": seconds,
                **quality,
            }
            print(json.dumps(line), flush=True)
            if picture is not None:
                save_grid(images[:100], picture)
    except PrismError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from error


if __name__ == "__main__":
    typer.run(main)
