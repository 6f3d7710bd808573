"""A client process whose server is scripted.

Everything else is real: a tiny run on the bundled digits, the trainer, the codecs, the store, and
the broadcast that the server would use.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.local_data import PartitionChoice, PrivateData
from client.loop import Client
from client.messages import Assignment, Finished, Joined, Wait
from client.privacy_guard import Guard
from client.store import ClientStore
from common.config import RunConfig, parse_config
from common.downlink import StateStep, initial_state
from common.errors import (
    PrismError,
)
from common.fingerprint import Fingerprint
from common.layout import SegmentSpec
from common.report import Report
from common.state import GlobalState
from server.aggregate import Closed
from server.broadcast import Broadcast

CONFIG = parse_config(
    """
rounds = 4
[data]
clients = 50
labels = "ignore"
[model]
width = 1
latent = 1
image_size = 16
[encoder]
layers = [3]
pool = 1
[train]
local_steps = 1
batch_size = 2
"""
)


HOUR = 3600.0


@dataclass(frozen=True)
class Submitted:
    """One update as it arrived."""

    assignment: Assignment
    payloads: tuple[bytes, ...]
    report: Report


class ScriptedServer:
    """Stands where a Transport stands, and answers as the script says.

    Attributes:
        script: what `await_round` answers, in order: a number is an assignment to that round,
            an error is raised. After the last the run is finished.
        trouble: by method, errors to raise before the method is carried out, in order.
        calls: names of the methods called, in order, without heartbeats.
    """

    def __init__(self, config: RunConfig, script: Sequence[int | Wait | PrismError] = ()) -> None:
        self.config = config
        self.script = list(script)
        self.trouble: dict[str, list[PrismError]] = defaultdict(list)
        self.calls: list[str] = []
        self.joins: list[Fingerprint | None] = []
        self.fetched: list[int | None] = []
        self.submitted: list[Submitted] = []
        self.broadcast = Broadcast(config, initial_state(config))
        self.fingerprint = Fingerprint.of(config)
        self.lease, self.place = 3 * HOUR, (0, 1)
        self.spoil: dict[bool, list[StateStep]] = {}
        self.beaten = threading.Event()

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.trouble[method]:
            raise self.trouble[method].pop(0)

    def advance(self) -> None:
        """Close a round: every score moves by one logit."""
        state = self.broadcast.state
        moved = GlobalState(state.round + 1, (state.scores + np.int16(2048)).astype(np.int16))
        self.broadcast.publish(Closed(moved, None, 1))

    def join(
        self, name: str, instance: bytes, fingerprint: Fingerprint | None, wants_partition: bool
    ) -> Joined:
        assert name and len(instance) == 16 and not wants_partition
        self._called("join")
        self.joins.append(fingerprint)
        return Joined(self.config.to_toml(), self.fingerprint, self.lease, (0, 0), time.time())

    def await_round(self) -> Assignment | Wait | Finished:
        self._called("await_round")
        if not self.script:
            return Finished(self.config.rounds)
        outcome = self.script.pop(0)
        if isinstance(outcome, PrismError):
            raise outcome
        if isinstance(outcome, Wait):
            return outcome
        while self.broadcast.state.round < outcome:
            self.advance()
        return Assignment(outcome, self.broadcast.digest, *self.place)

    def fetch_state(self, round_: int, held: GlobalState | None, limit: int) -> list[StateStep]:
        self._called("fetch_state")
        assert round_ == self.broadcast.state.round and limit > 0
        self.fetched.append(None if held is None else held.round)
        spoilt = self.spoil.get(held is not None)
        if spoilt is not None:
            return spoilt
        known = None if held is None else (held.round, held.digest())
        return list(self.broadcast.steps(known))

    def submit(
        self,
        run_id: bytes,
        assignment: Assignment,
        segments: Sequence[tuple[SegmentSpec, bytes]],
        report: Report,
    ) -> None:
        assert run_id == self.config.run_id()
        self._called("submit")
        payloads = tuple(payload for _, payload in segments)
        self.submitted.append(Submitted(assignment, payloads, report))

    def heartbeat(self) -> None:
        self.beaten.set()
        if self.trouble["heartbeat"]:
            raise self.trouble["heartbeat"].pop(0)

    def leave(self) -> None:
        self._called("leave")


class Clock:
    """Time that passes only while somebody sleeps; jitter that draws its upper bound."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def uniform(self, low: float, high: float) -> float:
        assert low in (0, 0.1) and low <= max(high, 0)
        return high


@contextlib.contextmanager
def process(
    server: ScriptedServer,
    state: Path | None = None,
    patience: float = 600.0,
    max_epsilon: float | None = None,
) -> Iterator[Client]:
    """What `python -m client` puts together, with the scripted server at the other end."""
    store = ClientStore(state, "client-0")
    data = PrivateData("digits", None, PartitionChoice(0, 50), torch.device("cpu"))
    guard = Guard(store.directory, max_epsilon)
    try:
        yield Client(server, data, store, guard, patience)  # type: ignore[arg-type]
    finally:
        store.close()


def take_part(server: ScriptedServer, state: Path | None = None, **options: Any) -> None:
    """One process from its start to its end."""
    with process(server, state, **options) as one:
        one.run()
