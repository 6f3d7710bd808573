"""`python -m client`: one training process."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from common.catalogue import SPECS
from common.command_line import DataDir, MetricsAddress
from common.errors import ConfigError, PrismError
from common.logs import Format, Level, Log, LogFormat, LogLevel


def client(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    data: Annotated[str, typer.Option(help=f"Your images: {SPECS}.")],
    data_dir: DataDir = None,
    partition: Annotated[
        str | None,
        typer.Option(
            help="Hold only part i of N of a shared data set, as i/N; auto lets the server "
            "choose. By default all of the data are this client's own."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="This client's name; by default that of --cert or --token-file, kept or made up."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads for training; 0 lets torch choose.")
    ] = 0,
    state: Annotated[
        Path | None,
        typer.Option(help="Keep optimiser, moving averages and name here across restarts."),
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="vgg19_bn's weights, where they cannot be downloaded.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Certificate authority of the server; turns TLS on.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="This client's certificate (mutual TLS).")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="This client's name and token, where it has no certificate."),
    ] = None,
    places: Annotated[
        Path | None,
        typer.Option(
            help="Take the first free folder in this one: its ca.pem, certificate and key, the "
            "name in that, and a state; instead of --name, --state, --ca, --cert and --key."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Allow a server off this machine without TLS.")
    ] = False,
    max_epsilon: Annotated[
        float | None,
        typer.Option(
            min=0, help="Refuse a run that is less private than this; no mechanism is infinite."
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to keep trying to reach the server.")
    ] = 600.0,
    metrics: MetricsAddress = None,
    log_level: Level = LogLevel.INFO,
    log_format: Format = LogFormat.TEXT,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only say what would keep this client from taking part."),
    ] = False,
) -> None:
    """Train on your own images with a server; the images stay here.

    The server's config is the only one: a client needs an address and its data. It may start
    before the server, and takes up where it was when either of them restarts.

    \b
    prism client --server 127.0.0.1:7070 --data folder:photos --state client-state
    prism client --server fl.example.org:7070 --ca ca.pem --data mnist --data-dir data
    prism client --server fl.example.org:7070 --ca ca.pem --data folder:photos --check
    prism client --server fl.example.org:7070 --places places --data folder:photos
    """
    # What gRPC writes to stderr by itself is told again, in words, where it matters.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    import torch

    from client.check import Setup, check_client
    from client.local_data import PartitionChoice, PrivateData, choose_device
    from client.loop import Client
    from client.messages import Security
    from client.places import Place
    from client.privacy_guard import Guard
    from client.store import ClientStore
    from client.telemetry import Telemetry
    from client.transport import Transport
    from common.address import Address, check_security
    from common.checklist import Checklist
    from common.endpoint import serving

    place, security = None, Security(ca, cert, key, token_file)
    if places is not None:
        try:
            if name or state or security != Security():
                raise ConfigError("--places has its own --name, --state, --ca, --cert and --key")
            place = Place.take(places)
        except PrismError as error:
            raise SystemExit(f"prism client: {error}") from error
        state, security = place.state, place.security
    if check:
        checks = Checklist(typer.echo)
        images = checks.attempt(
            lambda: PrivateData(
                data,
                data_dir,
                PartitionChoice.parse(partition),
                choose_device(device),
                encoder_weights,
            )
        )
        check_client(Setup(server, security, insecure, name, state, max_epsilon), images, checks)
        if checks.problems:
            raise SystemExit(f"prism client: problems: {len(checks.problems)}; nothing was started")
        return
    log = Log(log_level, log_format)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if threads:
        torch.set_num_threads(threads)
    with contextlib.ExitStack() as at_the_end:
        if place is not None:
            at_the_end.callback(place.close)
        try:
            address = Address.parse(server)
            check_security(address, secured=security.ca is not None, insecure=insecure)
            choice, where = PartitionChoice.parse(partition), choose_device(device)
            private = PrivateData(data, data_dir, choice, where, encoder_weights)
            store = ClientStore(state, name or security.proven_name())
            at_the_end.callback(store.close)
            transport = Transport(address, security)
            at_the_end.callback(transport.close)
            guard = Guard(store.directory, max_epsilon)
            telemetry = Telemetry()
            process = Client(transport, private, store, guard, patience, telemetry)
            figures = None if metrics is None else Address.parse(metrics, listening=True)
            at_the_end.enter_context(serving(figures, telemetry.registry))
        except (PrismError, OSError) as error:
            raise log.ended("prism client", error) from error
        try:
            process.run()
        except (PrismError, OSError) as error:
            process.leave()
            raise log.ended("prism client", error) from error
        except KeyboardInterrupt:
            # A second Ctrl-C must not be swallowed while the first one says goodbye.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            process.leave()
            raise SystemExit(130) from None


def main() -> None:
    """Run the command line."""
    typer.run(client)


if __name__ == "__main__":
    main()
