"""A federation in one process: the same trainer, codecs and aggregator, no network.

For measurements that would pay for N processes and a socket without learning from them. A
run of the real system with the same config ends in the same state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from client.loss import Moments
from client.trainer import PrismTrainer
from client.update import encode_update
from common.config import RunConfig
from common.state import GlobalState
from common.steps import initial_state
from server.aggregate import Closed, make_aggregator


@dataclass(frozen=True)
class SimulatedRound:
    """What one round gave.

    Attributes:
        closed: the aggregator's answer.
        up_bytes: payload bytes of all clients.
        seconds: of the round.
    """

    closed: Closed
    up_bytes: int
    seconds: float


def simulate(
    config: RunConfig,
    encoder: nn.Module,
    moments: Sequence[Moments],
    device: torch.device | None = None,
) -> Iterator[SimulatedRound]:
    """Run all rounds with one trainer per client, one after another.

    Args:
        config: the run; every client takes part in every round.
        encoder: the frozen encoder that the clients share.
        moments: each client's real moments.
        device: where to train; by default the CPU.
    """
    device = device or torch.device("cpu")
    trainers = [PrismTrainer(config, encoder, real, device) for real in moments]
    state: GlobalState = initial_state(config)
    for _ in range(config.rounds):
        started = time.monotonic()
        aggregator = make_aggregator(config, state, len(trainers))
        up_bytes = 0
        for rank, trainer in enumerate(trainers):
            name = f"client-{rank}"
            local = trainer.train(state, name)
            payloads = encode_update(
                config,
                state,
                local.scores,
                rank=rank,
                cohort_size=len(trainers),
                client=name,
            )
            up_bytes += sum(len(payload) for payload in payloads)
            aggregator.fold(aggregator.decode(payloads, rank))
        closed = aggregator.close()
        state = closed.state
        yield SimulatedRound(closed, up_bytes, time.monotonic() - started)
