"""What a run's communication cost, layer by layer: for a program, and for a person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prism.comm.traffic import DIRECTIONS, THEORY, Ledger, Tally

PAPER_BYTES: Final = 5_750_000
"""What PRISM's paper reports as its communication cost, for about 3.5 M parameters."""
_APART: Final = {
    "message_over_payload": "messages over payload",
    "framed_over_message": "modelled framing over messages",
    "socket_over_message": "socket over messages",
    "socket_over_payload": "socket over payload",
    "socket_over_framed": "socket over messages with modelled framing",
}
_WIDTH: Final = 120


@dataclass(frozen=True)
class Layer:
    """One way to count the same traffic.

    Attributes:
        key: name in --json.
        title: name in the table.
        up: bytes from clients to server.
        down: bytes from server to clients.
        client_rounds: that the bytes were for.
        d: parameters.
    """

    key: str
    title: str
    up: float
    down: float
    client_rounds: int
    d: int

    @property
    def total(self) -> float:
        """Bytes in both directions."""
        return self.up + self.down

    def bits(self, size: float) -> float | None:
        """Bits a parameter and client-round."""
        return 8 * size / (self.client_rounds * self.d) if self.client_rounds else None

    def mean(self, size: float) -> float | None:
        """Bytes a client-round."""
        return size / self.client_rounds if self.client_rounds else None

    def figures(self) -> dict[str, float | None]:
        """Everything, for --json."""
        return {
            "up_bits_per_parameter": self.bits(self.up),
            "down_bits_per_parameter": self.bits(self.down),
            "up_bytes_per_client_round": self.mean(self.up),
            "down_bytes_per_client_round": self.mean(self.down),
            "bytes_per_client_round": self.mean(self.total),
            "up_bytes": self.up,
            "down_bytes": self.down,
            "bytes": self.total,
        }


def layers(ledger: Ledger, clients: Iterable[str] | None = None) -> list[Layer]:
    """The traffic of some clients, or of everyone, from the codecs outwards."""
    names = None if clients is None else list(clients)
    rounds, d = ledger.rounds_of(names), ledger.dimension
    up, down = (ledger.tally(direction, names) for direction in DIRECTIONS)
    framed = [ledger.framed(direction, names) for direction in DIRECTIONS]
    return [
        Layer("payload", "codec payload", up.payload_bytes, down.payload_bytes, rounds, d),
        Layer("message", "protobuf messages", up.message_bytes, down.message_bytes, rounds, d),
        Layer("framed", "with framing (model)", framed[0], framed[1], rounds, d),
    ]


def socket_layer(ledger: Ledger) -> Layer | None:
    """What relays counted; None without any, or for a part of a run."""
    if not ledger.sockets or ledger.since:
        return None
    links = ledger.sockets
    title = f"socket ({'TLS, ' if any(link.tls for link in links.values()) else ''}measured"
    everyone = {client for _, client in ledger.client_rounds}
    if not everyone <= set(links):
        title += f", {len(links)} of {len(everyone)} clients"
    return Layer(
        "socket",
        title + ")",
        sum(link.up for link in links.values()),
        sum(link.down for link in links.values()),
        ledger.rounds_of(links),
        ledger.dimension,
    )


def report(ledger: Ledger) -> dict[str, Any]:
    """All figures; bytes, and bits a parameter and client-round."""
    rounds, d = ledger.rounds_of(), ledger.dimension
    shown = [*layers(ledger), _fedavg(rounds, d)]
    socket = socket_layer(ledger)
    return {
        "name": ledger.name,
        "dimension": d,
        "client_rounds": rounds,
        "theory_bits_per_parameter": ledger.theory,
        **{layer.key: layer.figures() for layer in shown},
        "socket": socket and {"clients": sorted(ledger.sockets), **socket.figures()},
        "paper_bytes": PAPER_BYTES,
        "apart_percent": apart(ledger),
        "notes": notes(ledger),
        "rpc": [
            {"rpc": rpc, "direction": direction, **vars(tally)}
            for (rpc, direction), tally in _by_rpc(ledger).items()
        ],
    }


def apart(ledger: Ledger) -> dict[str, float | None]:
    """How much more each layer has than the one within it, percent of the inner one.

    Where relays counted, over the clients that they counted alone, so that like stands
    beside like.
    """
    socket = socket_layer(ledger)
    payload, message, framed = layers(ledger, ledger.sockets if socket else None)
    found = {
        "message_over_payload": _percent(message.total, payload.total),
        "framed_over_message": _percent(framed.total, message.total),
    }
    if socket is not None:
        found["socket_over_message"] = _percent(socket.total, message.total)
        found["socket_over_payload"] = _percent(socket.total, payload.total)
        found["socket_over_framed"] = _percent(socket.total, framed.total)
    return found


def show(ledger: Ledger) -> None:
    """Print all figures as tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(_costs(ledger))
    lines = [*_apart(ledger), *notes(ledger)]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    console.print(_calls(ledger))


def _costs(ledger: Ledger) -> Table:
    rounds, d = ledger.rounds_of(), ledger.dimension
    table = Table(title=f"{escape(ledger.name)}: {d:,} parameters, {rounds} client-rounds")
    table.add_column("", no_wrap=True)
    for title in ("up", "down", "up", "down", "both", "all rounds", "of FP32"):
        table.add_column(title, justify="right")
    table.columns[1].header = "bits/param\nup"
    table.columns[3].header = "a client-round\nup"
    for name, title in THEORY.items():
        if name in ledger.theory:
            table.add_row(title, f"{ledger.theory[name]:.4f}")
    fedavg = _fedavg(rounds, d)
    socket = socket_layer(ledger)
    for layer in [*layers(ledger), *([socket] if socket else []), fedavg]:
        whole = layer.mean(layer.total)
        share = "-" if whole is None else f"{100 * whole / (8 * d):.2f} %"
        table.add_row(
            layer.title,
            *(_number(layer.bits(size)) for size in (layer.up, layer.down)),
            *(_size(layer.mean(size)) for size in (layer.up, layer.down, layer.total)),
            _size(layer.total),
            share,
            end_section=layer.key in {"socket", "framed"} and layer is not fedavg,
        )
    table.add_row("PRISM's paper, its model", "", "", "", "", _size(PAPER_BYTES))
    return table


def _apart(ledger: Ledger) -> list[str]:
    return [
        f"{_APART[key]} {percent:+.2f} %"
        for key, percent in apart(ledger).items()
        if percent is not None
    ]


def notes(ledger: Ledger) -> list[str]:
    """What to know of the figures, a line each."""
    lines = []
    if ledger.since:
        lines.append(f"from round {ledger.since} on; relays count whole runs")
    elif not (ledger.sockets or ledger.partial or ledger.unknown):
        lines.append("no socket bytes: no relay stood before a client (prism run --relay)")
    if ledger.lacking:
        lines.append(
            f"too little: comm.jsonl lacks {ledger.lacking} updates that metrics.jsonl counts"
        )
    if lost := sum(link.lost for link in ledger.sockets.values()):
        lines.append(f"{lost} bytes were still on their way when a connection ended")
    if ledger.partial:
        lines.append(
            f"not in the socket bytes: {', '.join(ledger.partial)}, whose relays counted less "
            "than the messages, so they missed a part of the run"
        )
    if ledger.mixed:
        lines.append(
            f"TLS in a part of the run alone, in all of the model: {', '.join(ledger.mixed)}"
        )
    if ledger.unknown:
        lines.append(
            f"not in the socket bytes: {', '.join(ledger.unknown)}, since comm.jsonl has no such "
            "client yet (a relay's log bears its client's name)"
        )
    return lines


def _calls(ledger: Ledger) -> Table:
    table = Table(title="by call")
    for title in ("rpc", "direction", "calls", "payload", "messages", "share"):
        table.add_column(title, justify="left" if title in ("rpc", "direction") else "right")
    tallies = _by_rpc(ledger)
    whole = Tally.sum(tallies.values()).message_bytes or 1
    for (rpc, direction), tally in tallies.items():
        table.add_row(
            escape(rpc),
            direction,
            str(tally.calls),
            _size(tally.payload_bytes),
            _size(tally.message_bytes),
            f"{100 * tally.message_bytes / whole:.1f} %",
        )
    return table


def _by_rpc(ledger: Ledger) -> dict[tuple[str, str], Tally]:
    """By method and direction, the largest first."""
    found: dict[tuple[str, str], Tally] = {}
    for (_, rpc, direction), tally in ledger.tallies.items():
        found.setdefault((rpc, direction), Tally()).add(tally)
    return dict(sorted(found.items(), key=lambda item: -item[1].message_bytes))


def _fedavg(client_rounds: int, d: int) -> Layer:
    """FedAvg of 32-bit weights: all of them up and down in every client-round."""
    each = 4 * d * client_rounds
    return Layer("fedavg", "FedAvg, FP32, same d", each, each, client_rounds, d)


def _percent(outer: float, inner: float) -> float | None:
    return 100 * (outer - inner) / inner if inner else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _size(count: float | None) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    if count is None:
        return "-"
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count:.0f} B" if unit == "B" else f"{count / (limit / 1e3):.2f} {unit}"
    return f"{count / 1e9:.2f} GB"
