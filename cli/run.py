"""`prism run`: a local federation of real processes over loopback gRPC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from cli.certificate import make_certificate
from cli.display import RunDisplay
from cli.shaping import Shape
from common.config import RunConfig, load_config
from common.errors import ConfigError, PrismError

STOP_SECONDS = 15.0


def run(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/quickstart.toml.")],
    clients: Annotated[
        int | None, typer.Option(min=1, help="Client processes; by default data.clients.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's directory; by default runs/NAME.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images, as in `prism client`; by default data.name.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist, fmnist, cifar10 or celeba lie.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for the clients.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads a client; by default cores / clients.")
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="Images for the server's evaluations each output.evaluate_every rounds; by "
            "default the test part of the run's own data."
        ),
    ] = None,
    features: Annotated[
        str, typer.Option(help="Of those evaluations: lenet, small or inception.")
    ] = "lenet",
    relay: Annotated[
        bool,
        typer.Option(help="Put a metering relay before each client; counts in RUN/relay."),
    ] = False,
    rate: Annotated[
        str | None, typer.Option(help="With --relay: bits a second each way, such as 1mbit.")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="With --relay: one way, such as 50ms.")] = None,
    tls: Annotated[
        bool, typer.Option(help="Encrypt, with a certificate made for this machine in RUN/tls.")
    ] = False,
) -> None:
    """Run a whole federation on this machine: one real server, N real clients, loopback gRPC.

    Everything ends up in the run's directory: the resolved config, metrics.jsonl, comm.jsonl,
    TensorBoard events, samples.png and model.prism. Stopped with Ctrl-C, the same command
    takes it up again.

    \b
    prism run configs/quickstart.toml
    prism run configs/mnist.toml --data-dir data --set rounds=20 --set train.local_steps=40
    prism run configs/quickstart.toml --set output.evaluate_every=10
    prism run configs/quickstart.toml --relay --tls --rate 1mbit --delay 50ms
    """
    try:
        changes = list(override or [])
        if clients is not None:
            changes += [f"data.clients={clients}", f"round.min_clients={clients}"]
        resolved = load_config(config, changes)
        directory = out or Path("runs") / resolved.name
        spec = data or resolved.data.name
        if spec == "folder":
            raise ConfigError("data.name is folder: say which, with --data folder:PATH")
        count = resolved.data.clients
        if resolved.min_clients > count:
            raise ConfigError(
                f"round.min_clients is {resolved.min_clients}, but {count} clients are started: "
                f"--clients {resolved.min_clients}, or --set round.min_clients={count}"
            )
        cores = len(os.sched_getaffinity(0))
        options = ["--data", spec, "--device", device]
        options += ["--threads", str(threads or max(1, cores // count))]
        server_options = []
        if resolved.output.evaluate_every or eval_data is not None:
            server_options = ["--eval-data", eval_data or spec, "--features", features]
        if data_dir is not None:
            options += ["--data-dir", str(data_dir)]
            server_options += ["--eval-data-dir", str(data_dir)]
        relays = _relaying(relay, rate, delay)
        if tls:
            certificate, key = make_certificate(directory / "tls")
            options += ["--ca", str(certificate)]
            server_options += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        federate(resolved, config, changes, directory, options, relays, server_options)
    except PrismError as error:
        raise SystemExit(f"prism run: {error}") from error
    except OSError as error:
        raise SystemExit(f"prism run: cannot use {error.filename}: {error.strerror}") from error


def federate(
    resolved: RunConfig,
    config: Path,
    changes: Sequence[str],
    directory: Path,
    client_options: Sequence[str],
    relay_options: Sequence[str] | None = None,
    server_options: Sequence[str] = (),
) -> None:
    """Start the processes, show how the run goes, and leave none of them behind.

    With `relay_options`, not None, each client reaches the server through a relay of its own.

    Raises:
        PrismError: a process ended early; with the last line that it wrote.
    """
    directory.mkdir(parents=True, exist_ok=True)
    address_file = directory / "address"
    address_file.unlink(missing_ok=True)
    count = resolved.data.clients
    server_command = ["server", str(config), "--bind", "127.0.0.1:0", "--out", str(directory)]
    server_command += [*server_options, *(f"--set={change}" for change in changes)]
    with _processes(directory / "logs") as start, RunDisplay(resolved, directory) as display:
        server = start("server", server_command)
        if not (address := _address(address_file, server)):
            return
        addresses = [address] * count
        relays: list[_Member] = []
        if relay_options is not None:
            relays, addresses = _relays(start, address, directory / "relay", count, relay_options)
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
        ]
        while server.process.poll() is None:
            for member in (*clients, *relays):
                _raise_if_failed(member)
            display.refresh()
            time.sleep(0.2)
        _raise_if_failed(server)
        display.refresh()
        with suppress(subprocess.TimeoutExpired):
            for member in clients:
                member.process.wait(STOP_SECONDS)


class _Member:
    """One started process and where it writes."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as stream:
            # Its own session: Ctrl-C in the terminal reaches this process alone, which then
            # stops the others in order.
            self.process = subprocess.Popen(  # noqa: S603 - this project's own modules
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _relaying(relay: bool, rate: str | None, delay: str | None) -> list[str] | None:
    """Options of the relays; None without. Raises ConfigError as the relays would."""
    given = [("--rate", rate), ("--delay", delay)]
    options = [word for name, value in given if value is not None for word in (name, value)]
    if options and not relay:
        raise ConfigError(f"{options[0]} shapes the relays: give --relay too")
    Shape.parse(rate, delay)
    return options if relay else None


def _relays(
    start: _Starter, to: str, folder: Path, count: int, options: Sequence[str]
) -> tuple[list[_Member], list[str]]:
    """One relay for each client, listening; and where."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"client-{index}.address" for index in range(count)]
    relays = []
    for index, file in enumerate(files):
        file.unlink(missing_ok=True)
        words = ["cli", "relay", "--to", to, "--address-file", str(file), *options]
        log = folder / f"client-{index}.jsonl"
        relays.append(start(f"relay-{index}", [*words, "--log", str(log)], last=True))
    return relays, [_address(*pair) for pair in zip(files, relays, strict=True)]


def _address(file: Path, member: _Member) -> str:
    """What a process that listens writes down; empty if it had nothing to do.

    Raises:
        PrismError: it failed.
    """
    while not file.exists():
        _raise_if_failed(member)
        if member.process.poll() is not None:
            return ""
        time.sleep(0.05)
    return file.read_text().strip()


def _raise_if_failed(member: _Member) -> None:
    if member.process.poll() not in (None, 0):
        lines = member.log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {member.process.returncode}"
        raise PrismError(f"{member.name} stopped: {last} (all of it: {member.log})")


class _Starter:
    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self.members: list[_Member] = []
        self.last: list[_Member] = []

    def __call__(self, name: str, command: Sequence[str], *, last: bool = False) -> _Member:
        """Start a process; `last` ones are stopped after all others."""
        member = _Member(name, command, self._logs / f"{name}.log")
        (self.last if last else self.members).append(member)
        return member


@contextmanager
def _processes(logs: Path) -> Iterator[_Starter]:
    """Start processes; whatever happens, none is left when the block ends."""
    starter = _Starter(logs)
    # A closed terminal ends a run as Ctrl-C does.
    ends = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(end, signal.default_int_handler) for end in ends]
    try:
        yield starter
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        try:
            _stop(starter.members)
        finally:
            _stop(starter.last)
            for end, handler in zip(ends, previous, strict=True):
                signal.signal(end, handler)


def _stop(members: Sequence[_Member]) -> None:
    # Clients first, so that they can say goodbye to a server that still listens.
    for member in reversed(members):
        if member.process.poll() is None:
            # A shell has SIGINT ignored by what it runs in the background.
            member.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for member in members:
        try:
            member.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()
