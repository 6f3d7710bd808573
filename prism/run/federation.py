"""A local federation: one server and N clients as processes of their own, watched to the end."""

from __future__ import annotations

import fcntl
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.config import RunConfig, load_config
from common.data import open_source
from common.errors import ConfigError
from prism.holdings import Holdings
from prism.relay.shaping import Shape
from prism.run.child import STOP_SECONDS
from prism.run.display import RunDisplay
from prism.run.interrupt import Interrupt
from prism.run.processes import Member, Starter, processes


def federate(
    resolved: RunConfig,
    config: Path,
    changes: Sequence[str],
    directory: Path,
    client_options: Sequence[str],
    relaying: Sequence[str] | None = None,
    server_options: Sequence[str] = (),
    *,
    interrupt: Interrupt,
) -> None:
    """Start the processes, show how the run goes, and leave none of them behind.

    With options for relays, not None, each client reaches the server through a relay of its own.
    If the run is told to stop, it ends the processes and returns.

    Raises:
        PrismError: a process ended early; with the last line that it wrote.
    """
    directory.mkdir(parents=True, exist_ok=True)
    address_file = directory / "address"
    address_file.unlink(missing_ok=True)
    count = resolved.data.clients
    server_command = ["server", str(config), "--bind", "127.0.0.1:0", "--out", str(directory)]
    server_command += [*server_options, *(f"--set={change}" for change in changes)]
    with (
        interrupt.orderly(),
        processes(directory / "logs") as start,
        RunDisplay(resolved, directory) as display,
    ):
        server = start("server", server_command)
        # Without an address it had nothing to do.
        if address := _address(address_file, server, interrupt):
            addresses = [address] * count
            relays: list[Member] = []
            if relaying is not None:
                folder = directory / "relay"
                relays, addresses = _relays(start, address, folder, count, relaying, interrupt)
            clients = [
                start(
                    f"client-{index}",
                    [
                        *("client", "--server", addresses[index], "--name", f"client-{index}"),
                        *("--partition", f"{index}/{count}"),
                        *("--state", str(directory / "clients" / str(index))),
                        *client_options,
                    ],
                )
                for index in range(count)
                if not interrupt.asked
            ]
            display.members = (server, *clients)
            _watch(server, clients, relays, display, interrupt)
    if not interrupt.asked:
        display.done()


def _watch(
    server: Member,
    clients: Sequence[Member],
    relays: Sequence[Member],
    display: RunDisplay,
    interrupt: Interrupt,
) -> None:
    """Until all have ended by themselves, or are to stop; raises PrismError if one failed."""
    while server.process.poll() is None and not interrupt.asked:
        for member in (*clients, *relays):
            member.raise_if_failed()
        display.refresh()
        time.sleep(0.2)
    if interrupt.asked:
        return
    server.raise_if_failed()
    with suppress(subprocess.TimeoutExpired):
        for member in clients:
            member.process.wait(STOP_SECONDS)


def check_free(directory: Path, config: RunConfig) -> None:
    """The checks of the server, before anything here touches what a live one needs.

    Raises:
        ConfigError: a server is using the directory, or it holds another run.
    """
    lock, held = directory / "server.lock", directory / "config.toml"
    if lock.exists():
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"a server is using {directory}: stop it first, or choose another --out"
                ) from None
    if held.exists():
        config.check_same_run(load_config(held), directory)


def check_split(config: RunConfig, data: str, data_dir: Path | None) -> None:
    """Cut the images as every client will, and look at the parts, before any is started.

    Args:
        config: the run.
        data: as `--data`.
        data_dir: where known data sets lie.

    Raises:
        DataError: there are no such images, they cannot be split as the config says, or a client
            would refuse its part.
    """
    Holdings.of(config, open_source(data, data_dir)).check(config)


def relay_options(relay: bool, rate: str | None, delay: str | None) -> list[str] | None:
    """Options of the relays; None without. Raises ConfigError as the relays would."""
    given = [("--rate", rate), ("--delay", delay)]
    options = [word for name, value in given if value is not None for word in (name, value)]
    if options and not relay:
        raise ConfigError(f"{options[0]} shapes the relays: give --relay too")
    Shape.parse(rate, delay)
    return options if relay else None


def _relays(
    start: Starter,
    to: str,
    folder: Path,
    count: int,
    options: Sequence[str],
    interrupt: Interrupt,
) -> tuple[list[Member], list[str]]:
    """One relay for each client, listening; and where."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"client-{index}.address" for index in range(count)]
    relays = []
    for index, file in enumerate(files):
        file.unlink(missing_ok=True)
        words = ["prism", "relay", "--to", to, "--address-file", str(file), *options]
        log = folder / f"client-{index}.jsonl"
        relays.append(start(f"relay-{index}", [*words, "--log", str(log)], last=True))
    return relays, [_address(*pair, interrupt) for pair in zip(files, relays, strict=True)]


def _address(file: Path, member: Member, interrupt: Interrupt) -> str:
    """What a process that listens writes down; empty if it had nothing to do, or is to stop.

    Raises:
        PrismError: it failed.
    """
    while not file.exists():
        member.raise_if_failed()
        if member.process.poll() is not None or interrupt.asked:
            return ""
        time.sleep(0.05)
    return file.read_text().strip()
