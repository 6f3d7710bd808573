"""A federation in one process: the same trainer, codecs and aggregator, no network.

For measurements that would pay for N processes and a socket without learning from them. What
`prism run` makes of the same config on the same machine ends in the same state, bit for bit
(`tests/test_simulator.py`); under a privacy mechanism, whose noise is drawn anew each time, it
would if the noise were the same. One JSON line per evaluation.

    python -m benchmarks.simulate configs/quickstart.toml --every 10
    python -m benchmarks.simulate configs/mnist.toml --data-dir data --set codec.up=flips
    python -m benchmarks.simulate configs/published.toml --data-dir data --masks fresh
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import typer

from benchmarks.masks import FreshMasks, check_has_masks, over_masks
from benchmarks.measure import Measured, Meter, Setting, command, grid_of
from client.local_images import LocalImages, local_moments
from client.loss import Moments
from client.mechanisms import noisy_values
from client.methods import make_trainer
from client.release import release_of
from client.update import encode_update, update_bits
from common.config import RunConfig
from common.data import ImageSource, partition, split_by
from common.downlink import initial_state
from common.encoders import FeatureEncoder, load_encoder
from common.errors import ConfigError
from common.model.architecture import Architecture
from common.model.export import build_model
from common.model.sampler import Sampler
from common.server_update import hamming
from common.state import GlobalState, Values, entropy_bits, sigma
from common.theory import MaskBits, figures
from server.aggregate import Contribution
from server.average import ModelSource, StateAverage
from server.broadcast import Broadcast
from server.figures import Rows, table
from server.methods import make_aggregator
from server.trim import left_out


@dataclass(frozen=True)
class SimulatedRound:
    """What one round gave.

    Attributes:
        start: what the round started from.
        locals: (K, d) what each client trained, as its update was made of it; by rank.
        state: what the next round starts from.
        source: what a model is exported from.
        lam: MADA's lambda.
        hamming: share of positions in which a mask of this state differs from one of the last,
            as in the paper's figure; None where the method has no masks.
        clients: what the server measured of each update, by name, as in metrics.jsonl.
        up_bytes: payload bytes of all clients.
        down_bytes: payload bytes that bring one client from the last state to this one.
        seconds: of the round.
    """

    start: GlobalState
    locals: Sequence[Values]
    state: GlobalState
    source: ModelSource
    lam: float | None
    hamming: float | None
    clients: Rows
    up_bytes: int
    down_bytes: int
    seconds: float


def simulate(
    config: RunConfig,
    encoder: FeatureEncoder,
    moments: Sequence[Moments],
    device: torch.device,
    encode: Callable[..., tuple[bytes, ...]] = encode_update,
) -> Iterator[SimulatedRound]:
    """Run all rounds with one trainer per client, one after another.

    Args:
        config: the run; every client takes part in every round.
        encoder: the frozen encoder that the clients share, on the device.
        moments: each client's real moments, on the device.
        device: where to train.
        encode: what makes an update, with the arguments of `encode_update`.

    Raises:
        ConfigError: the config asks for a share of the clients.
    """
    if config.round.participation < 1:
        raise ConfigError(
            "in a simulated run every client takes part in every round: set round.participation=1"
        )
    made = {
        client_name(i): make_trainer(config, encoder, real, device)
        for i, real in enumerate(moments)
    }
    # The server ranks a cohort by name, so client-10 comes before client-2.
    trainers = [(name, made[name]) for name in sorted(made)]
    broadcast = Broadcast(config, initial_state(config))
    average = StateAverage(config, broadcast.state)
    for _ in range(config.rounds):
        started = time.monotonic()
        state = broadcast.state
        aggregator = make_aggregator(config, state, len(trainers))
        up_bytes, locals_ = 0, []
        updates: dict[str, Contribution] = {}
        for rank, (name, trainer) in enumerate(trainers):
            values = noisy_values(config.privacy, state, trainer.train(state, name).values)
            locals_.append(values)
            payloads = encode(
                config,
                state,
                values,
                rank=rank,
                cohort_size=len(trainers),
                client=name,
            )
            up_bytes += sum(len(payload) for payload in payloads)
            updates[name] = aggregator.decode(payloads, rank)
            aggregator.fold(updates[name])
        figures = {name: update.figures for name, update in updates.items()}
        far = left_out(config, figures)
        for name in far:
            aggregator.unfold(updates[name])
        closed = aggregator.close()
        counted = {name: made[name] for name in made if name not in far}
        taught = {label for trainer in counted.values() for label in trainer.classes}
        cells = {name: trainer.cells for name, trainer in counted.items()}
        held = (state.round, broadcast.digest)
        last, state = state, broadcast.publish(closed)
        average.add(state, taught, cells)
        down_bytes = sum(len(step.payload) for step in broadcast.steps(held))
        seconds = time.monotonic() - started
        masked = state.values.dtype == np.int16
        apart = hamming(config, last, sigma(state.scores)) / state.dimension if masked else None
        yield SimulatedRound(
            start=last,
            locals=locals_,
            state=state,
            source=average.source,
            lam=closed.lam,
            hamming=apart,
            clients=table(figures, far),
            up_bytes=up_bytes,
            down_bytes=down_bytes,
            seconds=seconds,
        )


def client_name(rank: int) -> str:
    """What the client of a partition is called; noise and cells are drawn by it."""
    return f"client-{rank}"


def client_moments(
    config: RunConfig, source: ImageSource, encoder: FeatureEncoder, device: torch.device
) -> list[Moments]:
    """What each client trains on: its part's moments, or a fresh private release of them."""
    out = []
    for rank, part in enumerate(partition(split_by(source, config), config.data, config.seed)):
        images = LocalImages.of(config, source, part, client_name(rank))
        if config.privacy.mechanism == "moments":
            release = release_of(config, encoder, images, device)
            out.append(release.read(release.draw()).to(device))
        else:
            out.append(local_moments(encoder, images, device))
    return out


def measure(setting: Setting) -> Iterator[Measured]:
    """Simulate the run of a setting; one line per evaluation."""
    run, device = setting.config, setting.device
    if setting.masks == "fresh":
        check_has_masks(run)
    encoder = load_encoder(run.encoder.name, run.encoder.layers, run.encoder.pool).to(device)
    moments = client_moments(run, setting.source(), encoder, device)
    judge = setting.evaluator()
    meter = Meter(len(moments), Architecture.of(run).dimension)
    for done in simulate(run, encoder, moments, device):
        meter.add(done.up_bytes, done.down_bytes * len(moments), done.seconds)
        if not setting.due(done.state.round):
            continue
        model = _model(setting, done.source)
        images, quality = setting.judged(judge, model, done.state.round)
        masked = done.state.values.dtype == np.int16
        if masked and run.output.mask == "sample" and done.state.round == run.rounds:
            quality |= over_masks(judge, run, done.source, setting.samples)
        bits = MaskBits.mean(update_bits(run, done.start, values) for values in done.locals)
        of_mask = {
            "lambda": done.lam,
            "hamming": done.hamming,
            "entropy_bits": entropy_bits(done.state.scores) if masked else None,
            **figures(bits),
        }
        line = meter.line(done.state.round) | of_mask | quality
        yield Measured(line, images, grid_of(model))


def _model(setting: Setting, source: ModelSource) -> Sampler:
    """What is judged of a run."""
    if setting.masks == "fresh":
        return FreshMasks(setting.config, source, setting.device)
    return build_model(setting.config, source.state, source.unseen, source.cells)


if __name__ == "__main__":
    typer.run(command(measure, "Simulate one run and print its quality against its bytes."))
