"""`python -m server`: one aggregator process."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.config import load_config
from common.errors import PrismError
from server.app import serve
from server.evaluation import EvaluationOptions


def server(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/quickstart.toml.")],
    bind: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.")],
    out: Annotated[
        Path, typer.Option(help="The run's directory; a run that is there already goes on.")
    ],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; repeatable."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="Admit only clients with a certificate signed by these, in their name."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option(help="Allow plain text on an address that others can reach.")
    ] = False,
    reflection: Annotated[bool, typer.Option(help="Answer gRPC reflection.")] = False,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="Images that the server may hold the model against, each output.evaluate_every "
            "rounds: digits, mnist, fmnist, cifar10, celeba (their test part), or folder:PATH."
        ),
    ] = None,
    eval_data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist, fmnist, cifar10 or celeba lie.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(help="With --eval-data: lenet (trained on those images), small, inception."),
    ] = "lenet",
) -> None:
    """Orchestrate a run: wait for clients, open rounds, aggregate their updates.

    Stopped or killed at any moment, the same command takes the run up where it was.

    \b
    prism server configs/mnist.toml --bind 127.0.0.1:7070 --out runs/mnist
    prism server run.toml --bind 0.0.0.0:7070 --out run --tls-cert cert.pem --tls-key key.pem
    prism server run.toml --bind 127.0.0.1:7070 --out run --eval-data mnist --eval-data-dir data
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        asyncio.run(
            serve(
                load_config(config, override or ()),
                bind,
                out,
                tls_cert=tls_cert,
                tls_key=tls_key,
                client_ca=client_ca,
                insecure=insecure,
                reflection=reflection,
                evaluated=EvaluationOptions(eval_data, eval_data_dir, features),
            )
        )
    except PrismError as error:
        raise SystemExit(f"prism server: {error}") from error


def main() -> None:
    """Run the command line."""
    typer.run(server)


if __name__ == "__main__":
    main()
