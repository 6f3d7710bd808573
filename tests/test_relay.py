"""A relay passes every byte on, counts it twice, and slows a link down as it is told."""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from prism.relay.link import Link
from prism.relay.shaping import Bucket, Shape

TIMEOUT = 60
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, then end the other half too."""
    while data := await reader.read(50_000):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await finish(writer)


async def finish(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def linked(
    handler: Handler, shape: Shape | None = None, journal: Path | None = None
) -> AsyncIterator[Link]:
    """A link before a server that treats every connection with `handler`."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link("127.0.0.1:0", f"127.0.0.1:{port}", shape or Shape(), journal)
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(TIMEOUT):
            yield link
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        server.close()
        await server.wait_closed()


async def connect(link: Link) -> Streams:
    host, port = link.address.split(":")
    return await asyncio.open_connection(host, int(port))


async def exchange(link: Link, chunks: list[bytes]) -> bytes:
    """Send chunks, end this half, and return all that comes back."""
    reader, writer = await connect(link)

    async def send() -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(send(), reader.read())
    await finish(writer)
    return received


def journal_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@settings(max_examples=25, deadline=None)
@given(
    conversations=st.lists(
        st.lists(st.binary(max_size=300).map(lambda b: b * 97), max_size=8), min_size=1, max_size=3
    ),
    shape=st.sampled_from([Shape(), Shape(delay=0.002), Shape(rate=100e6, delay=0.001)]),
)
def test_every_byte_arrives_in_order_and_is_counted(
    conversations: list[list[bytes]], shape: Shape
) -> None:
    async def main() -> Link:
        async with linked(echo, shape) as link:
            replies = await asyncio.gather(*(exchange(link, c) for c in conversations))
            assert replies == [b"".join(chunks) for chunks in conversations]
        return link

    link = asyncio.run(main())
    size = sum(len(chunk) for chunks in conversations for chunk in chunks)
    assert set(link.total.figures().values()) == {size}
    assert link.connections == len(conversations)


def test_half_close(tmp_path: Path) -> None:
    """A side that has ended goes on receiving, whichever of the two ends first."""

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first")
        writer.write_eof()
        heard = await reader.read()
        assert heard == b"late"
        await finish(writer)

    async def main() -> None:
        async with linked(server, journal=tmp_path / "log") as link:
            reader, writer = await connect(link)
            assert await reader.read() == b"first"
            writer.write(b"late")
            await writer.drain()
            writer.write_eof()
            while not journal_of(tmp_path / "log"):  # noqa: ASYNC110 - the file is the event
                await asyncio.sleep(0)
            await finish(writer)

    asyncio.run(main())
    closed, end = journal_of(tmp_path / "log")
    assert (closed["event"], end["event"]) == ("closed", "end")
    for counts in (closed, closed["connection"], end):
        assert (counts["up_delivered"], counts["down_delivered"]) == (4, 5)


def test_a_reset_reaches_the_other_side(tmp_path: Path) -> None:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def main() -> None:
        async with linked(server, journal=tmp_path / "log") as link:
            reader, writer = await connect(link)
            writer.write(b"x")
            with suppress(ConnectionError):
                assert await reader.read() == b""
            await finish(writer)

    asyncio.run(main())
    assert journal_of(tmp_path / "log")[0]["event"] == "reset"


def test_an_unreachable_server_closes_the_connection_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with socket.socket() as target:
            target.bind(("127.0.0.1", 0))  # taken, but nobody listens
            to = f"127.0.0.1:{target.getsockname()[1]}"
            link = Link("127.0.0.1:0", to, Shape(), tmp_path / "log")
            running = asyncio.create_task(link.run())
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await connect(link)
                assert await reader.read() == b""
                await finish(writer)
                target.listen()
                target.setblocking(False)
                _, writer = await connect(link)
                accepted, _ = await asyncio.get_running_loop().sock_accept(target)
                accepted.close()
                await finish(writer)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    asyncio.run(main())
    lines = journal_of(tmp_path / "log")
    assert (lines[0]["event"], lines[0]["connections"]) == ("unreachable", 0)
    assert lines[-1]["connections"] == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "Connection refused" in said[0]


def test_nothing_is_read_ahead_of_a_slow_receiver() -> None:
    lags: list[int] = []
    size = 8 << 20

    async def main() -> None:
        async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1 << 16):
                lags.append(link.total.up.received - link.total.up.delivered)
            await finish(writer)

        async with linked(sink) as link:
            await exchange(link, [bytes(size)])

    asyncio.run(main())
    assert max(lags) <= 4 * Shape().chunk


def timed(shape: Shape, chunks: list[bytes]) -> float:
    async def main() -> float:
        async with linked(echo, shape) as link:
            started = time.monotonic()
            await exchange(link, chunks)
            return time.monotonic() - started

    return asyncio.run(main())


def test_rate() -> None:
    """Each direction has the whole rate, so an echo takes little longer than one way."""
    chunks = [bytes(1000)] * 100
    ideal = 8 * 100_000 / 2e6
    free, shaped = timed(Shape(), chunks), timed(Shape(rate=2e6), chunks)
    assert shaped > 0.9 * ideal
    assert shaped < 5 * ideal + 10 * free


def test_delay_adds_to_every_trip_and_holds_no_stream_up() -> None:
    async def trips(shape: Shape) -> float:
        async with linked(echo, shape) as link:
            reader, writer = await connect(link)
            started = time.monotonic()
            for _ in range(3):
                writer.write(b"ping")
                await reader.readexactly(4)
            seconds = time.monotonic() - started
            await finish(writer)
            return seconds

    free, delayed = asyncio.run(trips(Shape())), asyncio.run(trips(Shape(delay=0.05)))
    assert delayed > 6 * 0.05
    assert delayed < 5 * 6 * 0.05 + 10 * free

    # In chunks of 64 KiB, one after the other, this would take 25 s and more.
    chunks = [bytes(1 << 16)] * 128
    assert timed(Shape(delay=0.1), chunks) < 6 + 10 * timed(Shape(), chunks)


def test_a_link_that_rested_may_not_gush() -> None:
    bucket = Bucket(8000.0)
    assert bucket.take(1000, now=100.0) == pytest.approx(100.98)
    assert bucket.take(1000, now=100.0) == pytest.approx(101.98)
    assert bucket.take(1, now=200.0) == 200.0
    assert Bucket(None).take(10**9, now=5.0) == 5.0


def test_options() -> None:
    assert Shape.parse("1.5mbit", "50ms") == Shape(1.5e6, 0.05)
    assert Shape.parse("56 kbit", "2s") == Shape(56e3, 2.0)
    assert Shape.parse("1GBIT", None) == Shape(1e9, 0.0)
    for rate, delay in (
        ("fast", None),
        ("0mbit", None),
        ("5", None),
        ("1mb", None),
        (f"{9:0400}gbit".replace("0", "9"), None),
    ):
        with pytest.raises(ConfigError, match=r"--rate .* as in 1mbit"):
            Shape.parse(rate, delay)
    for delay in ("50", "-5ms", "0ms", "1m"):
        with pytest.raises(ConfigError, match=r"--delay .* as in 50ms"):
            Shape.parse(None, delay)


def test_a_rate_beyond_what_the_kernel_counts() -> None:
    async def main() -> bytes:
        async with linked(echo, Shape.parse("100gbit", None)) as link:
            return await exchange(link, [b"hello"])

    assert asyncio.run(main()) == b"hello"


def test_wrong_addresses_and_files(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for listen, to, log, says in (
            (f"127.0.0.1:{port}", "127.0.0.1:1", None, "cannot listen on"),
            ("192.0.2.1:0", "127.0.0.1:1", None, "cannot listen on"),
            ("127.0.0.1:0", "127.0.0.1:0", None, "port 0"),
            ("127.0.0.1:0", "nowhere", None, "HOST:PORT"),
            ("nowhere", "127.0.0.1:1", None, "HOST:PORT"),
            ("127.0.0.1:0", "127.0.0.1:1", tmp_path, "cannot write"),
        ):
            with pytest.raises(ConfigError, match=says):
                Link(listen, to, Shape(), log)


@contextmanager
def relayed(
    tmp_path: Path,
) -> Iterator[tuple[subprocess.Popen[str], socket.socket, socket.socket]]:
    """A relay process, and the two ends of a connection through it."""
    file = tmp_path / "address"
    with socket.create_server(("127.0.0.1", 0)) as target:
        to = f"127.0.0.1:{target.getsockname()[1]}"
        words = ("relay", "--to", to, "--log", tmp_path / "log", "--address-file", file)
        process = subprocess.Popen(
            [sys.executable, "-m", "prism", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while not file.exists():
                assert process.poll() is None
                time.sleep(0.02)
            host, port = file.read_text().strip().split(":")
            with socket.create_connection((host, int(port))) as client, target.accept()[0] as end:
                yield process, client, end
        finally:
            process.kill()
            process.communicate()


def test_a_killed_relay_has_written_what_it_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with relayed(tmp_path) as (process, client, server):
        client.sendall(bytes(12345))
        assert len(server.recv(12345, socket.MSG_WAITALL)) == 12345
        while not (lines := journal_of(log)) or lines[-1]["up_delivered"] < 12345:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait(TIMEOUT)
        assert client.recv(1) == server.recv(1) == b""
    last = journal_of(log)[-1]
    assert last["event"] == "total"
    assert (last["up_received"], last["down_received"]) == (12345, 0)


def test_told_to_stop_it_ends_in_order(tmp_path: Path) -> None:
    with relayed(tmp_path) as (process, client, server):
        server.sendall(b"hello")
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT)
        assert client.recv(1) == server.recv(1) == b""
        assert process.returncode == 0
    assert "1 connections: 0 bytes up, 5 down, 5 in all" in out
    assert "Traceback" not in err
    assert not (tmp_path / "address").exists()
    cut, end = journal_of(tmp_path / "log")[-2:]
    assert (cut["event"], cut["connection"]["down_delivered"]) == ("cut", 5)
    assert (end["event"], end["down_received"], end["connections"]) == ("end", 5, 1)
