"""What a run's communication cost, added up from the files that it left.

    comm.jsonl             codec payload and protobuf messages, as the server saw them; and
                           what theory says of each update's mask
    relay/CLIENT.jsonl     socket bytes, where a relay stood before that client
    metrics.jsonl          what theory says of each round

What lies between messages and socket (gRPC's prefixes, HTTP/2's frames, TLS records) is
modelled, so that it can be told without a relay, and checked against one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.config import load_config
from common.errors import ConfigError
from common.model.architecture import Architecture
from common.wire import CHUNK_BYTES
from prism.comm.lines import Call, Closed, Counts, Direction, Figures, read_lines

DIRECTIONS: Final[tuple[Direction, Direction]] = ("up", "down")
THEORY: Final = {
    "kl_bits": "divergence KL(client || state)",
    "cross_entropy_bits": "cross-entropy under the state",
    "entropy_bits": "entropy of the state's mask",
}
"""Fields of metrics.jsonl and comm.jsonl, bits a parameter."""

_STREAMS: Final = {("SubmitUpdate", "up"), ("FetchState", "down")}
_TLS_RECORD_BYTES: Final = 16_301
"""What gRPC puts into one record; each adds 22 bytes."""


@dataclass(frozen=True)
class Framing:
    """Bytes around the messages of one direction, as measured with grpcio 1.85.

    Attributes:
        connection: preface, settings, the first sight of every header, goodbye.
        call: headers, window updates, pings.
        message: gRPC's prefix of 5 and the head of one DATA frame, 9.
        tls_connection: the handshake, with one certificate of an elliptic curve.
        tls_call: the records that a call's small frames travel in.
    """

    connection: int
    call: int
    tls_connection: int
    tls_call: int
    message: int = 14

    def around(self, tally: Tally, connections: int, *, tls: bool) -> int:
        """Bytes that travel besides the messages."""
        plain = (
            self.connection * connections + self.call * tally.calls + self.message * tally.messages
        )
        if not tls:
            return plain
        records = (tally.message_bytes + plain) / _TLS_RECORD_BYTES
        secured = self.tls_connection * connections + self.tls_call * tally.calls
        return plain + secured + round(22 * records)


FRAMING: Final[dict[Direction, Framing]] = {
    "up": Framing(connection=500, call=95, tls_connection=1600, tls_call=57),
    "down": Framing(connection=190, call=63, tls_connection=2100, tls_call=53),
}


@dataclass
class Tally:
    """Calls of one kind, in one direction.

    Attributes:
        payload_bytes: of updates and states, as their codecs made them.
        message_bytes: of the protobuf messages.
        calls: that were made.
        messages: that they consisted of, closing frames included.
    """

    payload_bytes: int = 0
    message_bytes: int = 0
    calls: int = 0
    messages: int = 0

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """All of them together."""
        total = cls()
        for tally in tallies:
            total.add(tally)
        return total

    def add(self, other: Tally) -> None:
        """Add another one to this."""
        self.payload_bytes += other.payload_bytes
        self.message_bytes += other.message_bytes
        self.calls += other.calls
        self.messages += other.messages


@dataclass
class Sockets:
    """What the relays before one client counted.

    Attributes:
        up: bytes that the client wrote to its sockets.
        down: bytes that the server wrote to its.
        lost: bytes that were still on their way when a connection ended.
        connections: that were made.
        tls: whether a TLS handshake began them.
    """

    up: int = 0
    down: int = 0
    lost: int = 0
    connections: int = 0
    tls: bool = False

    @classmethod
    def of(cls, counts: Counts) -> Sockets:
        """What one relay counted."""
        up, down = counts.up_received, counts.down_received
        lost = up - counts.up_delivered + down - counts.down_delivered
        return cls(up, down, lost, counts.connections, counts.tls)

    def add(self, other: Sockets) -> None:
        """Add what another relay before the same client counted."""
        self.up += other.up
        self.down += other.down
        self.lost += other.lost
        self.connections += other.connections
        self.tls = self.tls or other.tls


@dataclass
class Ledger:
    """The whole account of one run.

    Attributes:
        name: of the run.
        dimension: d, parameters.
        tallies: by client, method and direction; clients without a name are "".
        client_rounds: (round, client) of every update that came.
        sockets: by client, for those with a relay throughout.
        partial: clients whose relays missed a part of the run.
        mixed: of `sockets`, those that spoke TLS in a part of the run alone.
        unknown: relays' logs whose names are no client's, so far.
        theory: mean bits a parameter, by field; over client-rounds where comm.jsonl has them,
            else over rounds.
        lacking: updates that went into rounds, and of which nothing tells what they took.
        since: the first round that is in it; relays count whole runs alone.
    """

    name: str
    dimension: int
    tallies: dict[tuple[str, str, Direction], Tally] = field(
        default_factory=lambda: defaultdict(Tally)
    )
    client_rounds: set[tuple[int, str]] = field(default_factory=set)
    sockets: dict[str, Sockets] = field(default_factory=dict)
    partial: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    theory: dict[str, float] = field(default_factory=dict)
    lacking: int = 0
    since: int = 0

    @classmethod
    def read(cls, run: Path, since: int = 0) -> Ledger:
        """Add up a run's files, from a round on; the run need not be finished.

        Raises:
            ConfigError: there is no run, or it has no ledger.
            StorageError: a file is not what this project writes.
        """
        if not run.is_dir():
            raise ConfigError(f"{run} is no directory")
        if not (run / "comm.jsonl").exists():
            raise ConfigError(f"{run} holds no run: there is no comm.jsonl in it")
        config = load_config(run / "config.toml")
        ledger = cls(config.name, Architecture.of(config).dimension, since=since)
        updates: dict[str, list[float]] = defaultdict(list)
        rounds: dict[str, list[float]] = defaultdict(list)
        for call in read_lines(run / "comm.jsonl", Call):
            if call.round >= since:
                ledger._traffic(call)
                _collect(updates, call)
        if (run / "metrics.jsonl").exists():
            came = Counter(round_ for round_, _ in ledger.client_rounds)
            for line in read_lines(run / "metrics.jsonl", Closed):
                if line.round >= since:
                    _collect(rounds, line)
                    ledger.lacking += max(0, line.clients - came[line.round])
        ledger.theory = _means(rounds) | _means(updates)
        for path in sorted((run / "relay").glob("*.jsonl")):
            ledger._relay(path)
        return ledger

    def tally(self, direction: Direction, clients: Iterable[str] | None = None) -> Tally:
        """All calls in a direction, of some clients or, by default, of everyone."""
        wanted = None if clients is None else set(clients)
        return Tally.sum(
            tally
            for (client, _, way), tally in self.tallies.items()
            if way == direction and (wanted is None or client in wanted)
        )

    def rounds_of(self, clients: Iterable[str] | None = None) -> int:
        """Client-rounds, of some clients or, by default, of everyone."""
        wanted = None if clients is None else set(clients)
        return sum(wanted is None or client in wanted for _, client in self.client_rounds)

    def framed(self, direction: Direction, clients: Iterable[str] | None = None) -> int:
        """Messages and what the model puts around them, bytes.

        A client that is not in `sockets` is taken to have kept one connection, in plain text.
        """
        names = {name for name, _, _ in self.tallies} if clients is None else set(clients)
        total = 0
        for name in names:
            tally = self.tally(direction, [name])
            link = self.sockets.get(name, Sockets(connections=1))
            connections = 0 if self.since else link.connections
            around = FRAMING[direction].around(tally, connections, tls=link.tls)
            total += tally.message_bytes + around
        return total

    def _traffic(self, call: Call) -> None:
        tally = Tally(call.payload_bytes, call.message_bytes, call.calls, call.calls)
        if (call.rpc, call.direction) in _STREAMS:
            tally.messages += math.ceil(tally.payload_bytes / CHUNK_BYTES)
        if call.rpc == "SubmitUpdate" and call.direction == "up":
            # Only after its last message does a streaming client know to end its side.
            tally.messages += tally.calls
            if tally.payload_bytes:
                self.client_rounds.add((call.round, call.client))
        self.tallies[call.client, call.rpc, call.direction].add(tally)

    def _relay(self, path: Path) -> None:
        last = {line.relay: line for line in read_lines(path, Counts, seams=True)}
        client, total = path.stem, Sockets()
        for counts in last.values():
            total.add(Sockets.of(counts))
        if not total.up:
            return
        # Relays count whole runs: beside a part of one, nothing shows what they missed.
        if not self.since:
            if client not in {name for name, _, _ in self.tallies}:
                self.unknown.append(path.name)
                return
            # A relay that saw it all saw more than the messages.
            up, down = (self.tally(direction, [client]).message_bytes for direction in DIRECTIONS)
            if total.up < up or total.down < down:
                self.partial.append(client)
                return
        if len({counts.tls for counts in last.values() if counts.up_received}) > 1:
            self.mixed.append(client)
        self.sockets[client] = total


def _collect(figures: dict[str, list[float]], line: Figures) -> None:
    for name in THEORY:
        if (value := getattr(line, name)) is not None:
            figures[name].append(value)


def _means(figures: dict[str, list[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in figures.items()}
