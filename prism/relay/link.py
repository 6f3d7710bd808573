"""One metered link: TCP connections passed on byte for byte, counted, and slowed if asked.

What passes is not looked into, so TLS stays between its two ends. Counted is the payload of
the sockets, each byte twice: when it is read from its sender and when it is written to its
receiver. Sockets are used bare, because a stream's own buffers would hide bytes from both
counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.address import Address
from common.errors import ConfigError
from prism.relay.shaping import Bucket, Shape

CONNECT_SECONDS: Final = 10.0
LOG_SECONDS: Final = 2.0
_CHUNKS_IN_FLIGHT: Final = 256
_QUEUE_SECONDS: Final = 0.25
_SMALLEST_BUFFER: Final = 64 * 1024
_LARGEST_BUFFER: Final = 2**30
_TLS_HANDSHAKE: Final = b"\x16"

log = logging.getLogger("prism.relay")


@dataclass
class Meter:
    """Bytes of one direction.

    Attributes:
        received: read from the sender.
        delivered: written to the receiver; less than received while bytes are on their way,
            and for good where a connection broke.
        first: the first byte that came.
    """

    received: int = 0
    delivered: int = 0
    first: bytes = b""

    def read(self, data: bytes) -> None:
        """Count what came from the sender."""
        self.first = self.first or data[:1]
        self.received += len(data)


@dataclass
class Meters:
    """Both directions; "up" is from the side that connected."""

    up: Meter
    down: Meter

    @classmethod
    def new(cls) -> Meters:
        """At zero."""
        return cls(Meter(), Meter())

    def figures(self) -> dict[str, int]:
        """The four counts by name."""
        return {
            "up_received": self.up.received,
            "up_delivered": self.up.delivered,
            "down_received": self.down.received,
            "down_delivered": self.down.delivered,
        }


class _Lane:
    """One direction of the link, shared by all its connections."""

    def __init__(self, shape: Shape, total: Meter) -> None:
        self._shape = shape
        self._total = total
        self._bucket = Bucket(shape.rate)

    async def carry(self, source: socket.socket, sink: socket.socket, meter: Meter) -> None:
        """Carry one connection's bytes until the source ends its side; then end the sink's.

        Raises:
            OSError: the connection broke.
        """
        # What a delayed link holds is on its way; without delay, whatever waits is in the way.
        most = _CHUNKS_IN_FLIGHT if self._shape.delay else 1
        flight: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(most)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(source, flight, meter))
            group.create_task(self._write(flight, sink, meter))

    async def _read(
        self, source: socket.socket, flight: asyncio.Queue[tuple[float, bytes]], meter: Meter
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"more"
        while data:
            data = await loop.sock_recv(source, self._shape.chunk)
            meter.read(data)
            self._total.read(data)
            left = self._bucket.take(len(data), loop.time())
            await flight.put((left + self._shape.delay, data))
            # Whoever sends faster than the link must feel it, so nothing is read ahead. Without
            # a rate this yields, since a socket that is always ready never would.
            await asyncio.sleep(left - loop.time())

    async def _write(
        self, flight: asyncio.Queue[tuple[float, bytes]], sink: socket.socket, meter: Meter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await flight.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                break
            await loop.sock_sendall(sink, data)
            meter.delivered += len(data)
            self._total.delivered += len(data)
        sink.shutdown(socket.SHUT_WR)


class Link:
    """Listens at one address and passes every connection on to another.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        to: HOST:PORT, looked up anew for every connection.
        shape: rate and delay; all connections share the rate.
        journal: file that JSON lines are appended to; None keeps none.

    Raises:
        ConfigError: an address or the journal cannot be used.
    """

    def __init__(self, listen: str, to: str, shape: Shape, journal: Path | None = None) -> None:
        there = Address.parse(to)
        self._to = there.host, there.port
        self.total = Meters.new()
        self.connections = 0
        self._accepted = 0
        self._shape = shape
        self._up = _Lane(shape, self.total.up)
        self._down = _Lane(shape, self.total.down)
        self._id = secrets.token_hex(8)
        self._last = self.total.figures()
        self._journal = None
        self._listener = _listen(listen, shape)
        host, port = self._listener.getsockname()[:2]
        self.address = str(Address(host, port))
        if journal is not None:
            try:
                journal.parent.mkdir(parents=True, exist_ok=True)
                self._journal = journal.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                self._listener.close()
                raise ConfigError(f"cannot write {journal}: {error.strerror}") from error

    async def run(self) -> None:
        """Pass connections on until cancelled; the open ones are closed then."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_journal())
                while True:
                    try:
                        client, peer = await loop.sock_accept(self._listener)
                    except OSError as error:
                        log.warning("cannot accept a connection: %s", error.strerror)
                        await asyncio.sleep(1)
                        continue
                    self._accepted += 1
                    group.create_task(self._connection(self._accepted, client, peer))
        finally:
            self._listener.close()
            self._note("end")
            if self._journal is not None:
                self._journal.close()

    async def _connection(self, number: int, client: socket.socket, peer: Any) -> None:
        started, meters = time.monotonic(), Meters.new()
        about: dict[str, Any] = {"number": number, "peer": f"{peer[0]}:{peer[1]}"}
        how = "cut"
        with client:
            try:
                server = await self._connect()
            except OSError as error:
                host, port = self._to
                why = os.strerror(error.errno) if error.errno else "no answer in time"
                log.warning("connection %d: cannot reach %s:%d: %s", number, host, port, why)
                self._note("unreachable", about)
                return
            self.connections += 1
            try:
                with server:
                    how = await self._pass_on(client, server, meters)
            finally:
                about["seconds"] = round(time.monotonic() - started, 3)
                self._note(how, about | meters.figures())
                log.info(
                    "connection %d: %s after %.1f s, %d bytes up, %d down",
                    number,
                    how,
                    about["seconds"],
                    meters.up.received,
                    meters.down.received,
                )

    async def _pass_on(self, client: socket.socket, server: socket.socket, meters: Meters) -> str:
        """Carry both directions; how it ended."""
        how = "closed"
        try:
            for end in (client, server):
                # A frame that waited for company would add delay that nobody asked for.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._up.carry(client, server, meters.up))
                group.create_task(self._down.carry(server, client, meters.down))
        except* OSError:
            how = "reset"
        return how

    async def _connect(self) -> socket.socket:
        """Connect to the other side; raises OSError (TimeoutError is one)."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await loop.getaddrinfo(*self._to, type=socket.SOCK_STREAM)
            for last, (family, kind, protocol, _, address) in enumerate(found, 1):
                server = socket.socket(family, kind, protocol)
                try:
                    _size_buffer(server, self._shape)
                    server.setblocking(False)
                    await loop.sock_connect(server, address)
                except BaseException as error:
                    server.close()
                    if last == len(found) or not isinstance(error, OSError):
                        raise
                else:
                    return server
        raise OSError("the name has no address")

    async def _keep_journal(self) -> None:
        while True:
            await asyncio.sleep(LOG_SECONDS)
            if self.total.figures() != self._last:
                self._note("total")

    def _note(self, event: str, connection: dict[str, Any] | None = None) -> None:
        """Append a line: counts are cumulative, so the last line of a relay says it all."""
        if self._journal is None:
            return
        self._last = self.total.figures()
        line = {
            "relay": self._id,
            "time": round(time.time(), 3),
            "event": event,
            "connections": self.connections,
            "tls": self.total.up.first == _TLS_HANDSHAKE,
            **self._last,
        }
        if connection is not None:
            line["connection"] = connection
        try:
            self._journal.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("cannot write the log: %s", error.strerror)


def _listen(address: str, shape: Shape) -> socket.socket:
    wanted = Address.parse(address, listening=True)
    try:
        found = socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(found[0][4][:2], family=found[0][0])
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error
    # Connections inherit it; set later, the sender would have been told of more room.
    _size_buffer(listener, shape)
    listener.setblocking(False)
    return listener


def _size_buffer(end: socket.socket, shape: Shape) -> None:
    """Let a slow link queue a quarter of a second, not the megabytes that the kernel would."""
    if shape.rate is not None:
        size = max(_SMALLEST_BUFFER, int(shape.rate / 8 * _QUEUE_SECONDS))
        # The kernel takes an int and may give less.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(size, _LARGEST_BUFFER))
