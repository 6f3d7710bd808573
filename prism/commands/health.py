"""`prism health`: whether a server is well, as an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import PrismError


def health(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    ca: Annotated[
        Path | None, typer.Option(help="Certificate authority of the server; turns TLS on.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Any client's certificate, where the server asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to wait for an answer.")] = 5.0,
) -> None:
    """Ask a server whether it is well; the exit code says so, too.

    The code is 1 if it is not, or does not answer. Without --ca it asks in plain text.

    \b
    prism health --server 127.0.0.1:7070
    prism health --server fl.example.org:7070 --ca ca.pem --cert health.pem --key health.key
    """
    from client.health import check_health
    from client.messages import Security
    from common.address import Address

    try:
        address = Address.parse(server)
        check_health(address, Security(ca, cert, key), seconds)
    except PrismError as error:
        raise SystemExit(f"prism health: {error}") from error
    typer.echo(f"{address} is well")
