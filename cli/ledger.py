"""What a run's communication cost, added up from the files that it left.

    comm.jsonl             codec payload and protobuf messages, as the server saw them; and
                           what theory says of each update's mask
    relay/CLIENT.jsonl     socket bytes, where a relay stood before that client
    metrics.jsonl          what theory says of each round

What lies between messages and socket (gRPC's prefixes, HTTP/2's frames, TLS records) is
modelled, so that it can be told without a relay, and checked against one.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from common.config import load_config
from common.errors import ConfigError, StorageError
from common.model.architecture import Architecture

Direction: TypeAlias = Literal["up", "down"]
DIRECTIONS: Final[tuple[Direction, Direction]] = ("up", "down")
THEORY: Final = {
    "kl_bits": "divergence KL(client || state)",
    "cross_entropy_bits": "cross-entropy under the state",
    "entropy_bits": "entropy of the state's mask",
}
"""Fields of metrics.jsonl and comm.jsonl, bits a parameter."""

_CHUNK_BYTES: Final = 64 * 1024
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
        sockets: by client, for those with a relay.
        theory: mean bits a parameter, by field; over client-rounds where comm.jsonl has them,
            else over rounds.
        since: the first round that is in it; relays count whole runs alone.
    """

    name: str
    dimension: int
    tallies: dict[tuple[str, str, Direction], Tally] = field(
        default_factory=lambda: defaultdict(Tally)
    )
    client_rounds: set[tuple[int, str]] = field(default_factory=set)
    sockets: dict[str, Sockets] = field(default_factory=dict)
    theory: dict[str, float] = field(default_factory=dict)
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
        ledger = cls(config.name, Architecture.of(config.model).dimension, since=since)
        updates: dict[str, list[float]] = defaultdict(list)
        rounds: dict[str, list[float]] = defaultdict(list)
        _read_lines(run / "comm.jsonl", ledger._traffic, ledger._collecting(updates))
        if (run / "metrics.jsonl").exists():
            _read_lines(run / "metrics.jsonl", ledger._collecting(rounds))
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

        A client without a relay is taken to have kept one connection, in plain text.
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

    def _traffic(self, line: dict[str, Any]) -> None:
        if line["round"] < self.since:
            return
        client, rpc, direction = line["client"], line["rpc"], line["direction"]
        tally = Tally(line["payload_bytes"], line["message_bytes"], line["calls"], line["calls"])
        if (rpc, direction) in _STREAMS:
            tally.messages += math.ceil(tally.payload_bytes / _CHUNK_BYTES)
        if rpc == "SubmitUpdate" and direction == "up":
            # Only after its last message does a streaming client know to end its side.
            tally.messages += tally.calls
            if tally.payload_bytes:
                self.client_rounds.add((line["round"], client))
        self.tallies[client, rpc, direction].add(tally)

    def _collecting(self, figures: dict[str, list[float]]) -> Callable[[dict[str, Any]], None]:
        def collect(line: dict[str, Any]) -> None:
            for name in THEORY if line["round"] >= self.since else ():
                if line.get(name) is not None:
                    figures[name].append(line[name])

        return collect

    def _relay(self, path: Path) -> None:
        last: dict[str, Sockets] = {}

        def note(line: dict[str, Any]) -> None:
            up, down = line["up_received"], line["down_received"]
            lost = up - line["up_delivered"] + down - line["down_delivered"]
            last[line["relay"]] = Sockets(up, down, lost, line["connections"], line["tls"])

        _read_lines(path, note)
        total = Sockets()
        for link in last.values():
            total.add(link)
        if not total.up:
            return
        if not self.since and path.stem not in {client for client, _, _ in self.tallies}:
            raise ConfigError(f"{path}: the run has no client {path.stem}; name the file after one")
        self.sockets[path.stem] = total


def _read_lines(path: Path, *readers: Callable[[dict[str, Any]], None]) -> None:
    """Show each complete line of a file, which may still grow, to all readers."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            content = json.loads(line)
            for reader in readers:
                reader(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{path}, line {number}: not what this program writes") from error


def _means(figures: dict[str, list[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in figures.items()}
