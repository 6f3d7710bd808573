"""Figures of a client process for Prometheus, for whoever runs it.

Counters count from the start of this process. The loss is what travels with an update, so it is
absent where the run's privacy keeps it here.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

from common.endpoint import SECONDS, Errors, new_registry


class Doing(StrEnum):
    """What a client does."""

    CONNECTING = "connecting"
    PREPARING = "preparing"
    WAITING = "waiting"
    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"


class Telemetry:
    """The metrics of one client process.

    Attributes:
        registry: what Prometheus is answered from.
        errors: counts what calls ended with.
    """

    def __init__(self) -> None:
        self.registry = registry = new_registry()
        self.errors = Errors(
            "prism_client_errors", "Calls that ended in an error, by gRPC code and class.", registry
        )
        self._state = Gauge(
            "prism_client_state", "1 for what the client does now.", ["state"], registry=registry
        )
        self._round = Gauge("prism_client_round", "Round that it works on.", registry=registry)
        self._rounds = Counter(
            "prism_client_rounds", "Rounds whose update was acknowledged.", registry=registry
        )
        self._steps = Histogram(
            "prism_client_step_seconds", "Of a local step.", buckets=SECONDS, registry=registry
        )
        self._trained = Histogram(
            "prism_client_train_seconds",
            "Of all local steps of a round.",
            buckets=SECONDS,
            registry=registry,
        )
        self._payloads = Counter(
            "prism_client_payload_bytes",
            "Bytes of updates that were acknowledged, and of states.",
            ["direction", "kind"],
            registry=registry,
        )
        self._loss: Gauge | None = None
        self._last_step = 0.0
        self.does(Doing.CONNECTING)

    def does(self, doing: Doing, round_: int | None = None) -> None:
        """What it does from now on, for which round."""
        for other in Doing:
            self._state.labels(other).set(other is doing)
        if round_ is not None:
            self._round.set(round_)
        self._last_step = time.monotonic()

    def stepped(self) -> None:
        """A local step is over."""
        now = time.monotonic()
        self._steps.observe(now - self._last_step)
        self._last_step = now

    def trained(self, seconds: float) -> None:
        """All local steps of a round are over."""
        self._trained.observe(seconds)

    def moved(self, direction: Literal["up", "down"], payload_bytes: int) -> None:
        """An update (up) was acknowledged, or a state (down) came."""
        kind = {"up": "update", "down": "state"}[direction]
        self._payloads.labels(direction, kind).inc(payload_bytes)

    def acknowledged(self, loss: float | None) -> None:
        """An update was acknowledged, with this loss."""
        self._rounds.inc()
        if loss is None:
            return
        if self._loss is None:
            what = "Mean loss that was sent with the last update."
            self._loss = Gauge("prism_client_loss", what, registry=self.registry)
        self._loss.set(loss)
