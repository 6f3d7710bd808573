"""`prism run`: a local federation of real processes over loopback gRPC."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from common.config import RunConfig, load_config
from common.errors import ConfigError, PrismError
from prism.relay.shaping import Shape
from prism.run.certificate import make_certificate
from prism.run.display import RunDisplay
from prism.run.processes import STOP_SECONDS, Member, Starter, processes


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
        if resolved.output.evaluate_every and eval_data is None and spec.startswith("folder:"):
            raise ConfigError(
                "output.evaluate_every would hold the model against the clients' own images: "
                "give others with --eval-data, or output.evaluate_every=0"
            )
        if resolved.output.evaluate_every or eval_data is not None:
            server_options = ["--eval-data", eval_data or spec, "--features", features]
        if data_dir is not None:
            options += ["--data-dir", str(data_dir)]
            server_options += ["--eval-data-dir", str(data_dir)]
        relays = _relaying(relay, rate, delay)
        _check_free(directory, resolved)
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
    with processes(directory / "logs") as start, RunDisplay(resolved, directory) as display:
        server = start("server", server_command)
        if not (address := _address(address_file, server)):
            return
        addresses = [address] * count
        relays: list[Member] = []
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
                member.raise_if_failed()
            display.refresh()
            time.sleep(0.2)
        server.raise_if_failed()
        display.refresh()
        with suppress(subprocess.TimeoutExpired):
            for member in clients:
                member.process.wait(STOP_SECONDS)


def _check_free(directory: Path, config: RunConfig) -> None:
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
    if held.exists() and load_config(held).run_id() != config.run_id():
        raise ConfigError(
            f"{directory} holds another run: choose another --out, or its config.toml"
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
    start: Starter, to: str, folder: Path, count: int, options: Sequence[str]
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
    return relays, [_address(*pair) for pair in zip(files, relays, strict=True)]


def _address(file: Path, member: Member) -> str:
    """What a process that listens writes down; empty if it had nothing to do.

    Raises:
        PrismError: it failed.
    """
    while not file.exists():
        member.raise_if_failed()
        if member.process.poll() is not None:
            return ""
        time.sleep(0.05)
    return file.read_text().strip()
