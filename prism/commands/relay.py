"""`prism relay`: count what a link carries, and slow it down if asked."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, PrismError
from common.logs import Log
from prism.relay.link import Link
from prism.relay.shaping import Shape


def relay(
    to: Annotated[str, typer.Option(help="HOST:PORT to pass connections on to.")],
    listen: Annotated[
        str,
        typer.Option(
            help="HOST:PORT to accept them on; port 0 takes a free one. Whoever reaches it "
            "reaches --to; nothing is decrypted on the way."
        ),
    ] = "127.0.0.1:0",
    rate: Annotated[
        str | None,
        typer.Option(help="Bits a second each way: 56kbit, 1mbit, 1gbit. By default unlimited."),
    ] = None,
    delay: Annotated[
        str | None, typer.Option(help="One way, in both directions: 50ms, 0.2s. By default none.")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Append counts to this file as JSON lines; each holds the sums so far."),
    ] = None,
    address_file: Annotated[
        Path | None, typer.Option(help="Write the address here while listening.")
    ] = None,
) -> None:
    """Pass TCP connections on and count the bytes, exactly.

    TLS goes through untouched. With --rate and --delay a fast link feels like a slow one,
    without root. Put it before a server or before a client, and stop it with Ctrl-C.

    \b
    prism relay --listen 127.0.0.1:7071 --to 127.0.0.1:7070 --log relay.jsonl
    prism relay --listen 0.0.0.0:7071 --to fl.example.org:7070 --rate 1mbit --delay 50ms
    """
    Log()
    try:
        asyncio.run(_run(listen, to, Shape.parse(rate, delay), log, address_file))
    except PrismError as error:
        raise SystemExit(f"prism relay: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _run(
    listen: str, to: str, shape: Shape, journal: Path | None, address_file: Path | None
) -> None:
    link = Link(listen, to, shape, journal)
    running = asyncio.create_task(link.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    typer.echo(f"listening on {link.address}, passing on to {to}")
    with _announced(address_file, link.address), contextlib.suppress(asyncio.CancelledError):
        await running
    up, down = link.total.up.received, link.total.down.received
    typer.echo(f"{link.connections} connections: {up} bytes up, {down} down, {up + down} in all")


@contextlib.contextmanager
def _announced(path: Path | None, address: str) -> Iterator[None]:
    """Keep a file that holds the address, never a part of it; raises ConfigError."""
    if path is None:
        yield
        return
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.write_text(address + "\n", encoding="ascii")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
