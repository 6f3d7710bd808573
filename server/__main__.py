"""`python -m server`: one aggregator process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from common.catalogue import SPECS
from common.command_line import DataDir, MetricsAddress, Override
from common.errors import PrismError
from common.logs import Format, Level, Log, LogFormat, LogLevel


def server(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/quickstart.toml.")],
    bind: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.")],
    out: Annotated[
        Path, typer.Option(help="The run's directory; a run that is there already goes on.")
    ],
    override: Override = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Start from the last state of another run's directory."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="Admit only clients with a certificate signed by these, in their name."),
    ] = None,
    allow: Annotated[
        Path | None,
        typer.Option(
            help="Admit only the names in this file, one a line; read again when it changes: who "
            "is taken out is out at once."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Admit only who proves a name in this file by a token, for clients without "
            "certificates; `prism certs token` makes them. Over TLS only."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Allow plain text on an address that others can reach.")
    ] = False,
    reflection: Annotated[bool, typer.Option(help="Answer gRPC reflection.")] = False,
    metrics: MetricsAddress = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="Images that the server may compare the model with, each output.evaluate_every "
            f"rounds: {SPECS}; of a named data set its test part."
        ),
    ] = None,
    eval_data_dir: DataDir = None,
    features: Annotated[
        str,
        typer.Option(help="With --eval-data: lenet (trained on those images), small, inception."),
    ] = "lenet",
    log_level: Level = LogLevel.INFO,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Run the server: open rounds, aggregate updates, keep the state.

    Stopped or killed at any moment, the same command takes the run up where it was. What it logs
    is in OUT/logs/server.log, too.

    \b
    prism server configs/mnist.toml --bind 127.0.0.1:7070 --out runs/mnist
    prism server run.toml --bind 0.0.0.0:7070 --out run --tls-cert cert.pem --tls-key key.pem
    prism server run.toml --bind 127.0.0.1:7070 --out run --eval-data mnist --eval-data-dir data
    """
    from server.strangers import watch_grpc

    # Before gRPC is there, and before the log knows where to write.
    strangers = watch_grpc()

    from common.config import load_config
    from server.app import serve
    from server.evaluation import EvaluationOptions

    log = Log(log_level, log_format, held=True)
    try:
        asyncio.run(
            serve(
                load_config(config, override or ()),
                bind,
                out,
                tls_cert=tls_cert,
                tls_key=tls_key,
                client_ca=client_ca,
                allow=allow,
                token_file=token_file,
                insecure=insecure,
                reflection=reflection,
                metrics=metrics,
                start=start,
                strangers=strangers,
                claimed=lambda: log.into(out / "logs" / "server.log"),
                evaluated=EvaluationOptions(eval_data, eval_data_dir, features),
            )
        )
    except (PrismError, OSError) as error:
        raise log.ended("prism server", error) from error


def main() -> None:
    """Run the command line."""
    typer.run(server)


if __name__ == "__main__":
    main()
