"""`prism status`: how a run goes, asked of its server."""

from __future__ import annotations

import json
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from common.errors import PrismError, TransportError

if TYPE_CHECKING:
    from client.status import Asker

EVERY_SECONDS: Final = 2.0
"""Between two looks of --watch."""


def status(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    ca: Annotated[
        Path | None, typer.Option(help="Certificate authority of the server; turns TLS on.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Any client's certificate, where the server asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Any client's name and token, to be told names.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until the run is finished, or Ctrl-C.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An object in one line.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to wait for an answer.")] = 5.0,
) -> None:
    """Show how a run goes: round, clients, who is waited for, errors.

    The server names clients to those who take part in the run, by certificate or token, and on
    its own machine. Without --ca it is asked in plain text.

    \b
    prism status --server 127.0.0.1:7070 --watch
    prism status --server fl.example.org:7070 --ca ca.pem --cert ann.pem --key ann.key --json
    """
    from client.messages import Security
    from client.status import asking
    from common.address import Address

    try:
        with asking(Address.parse(server), Security(ca, cert, key, token_file)) as asker:
            if watch:
                _watch(asker, seconds, as_json)
            else:
                typer.echo(_shown(asker, seconds, as_json)[0])
    except PrismError as error:
        raise SystemExit(f"prism status: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _shown(asker: Asker, seconds: float, as_json: bool) -> tuple[str, bool]:
    """What there is to say, and whether the run is finished."""
    from prism.status_text import status_lines

    found = asker.ask(seconds)
    text = json.dumps(found.as_dict()) if as_json else "\n".join(status_lines(found))
    return text, found.phase == "finished"


def _watch(asker: Asker, seconds: float, as_json: bool) -> None:
    """Show it again and again: in its place on a terminal, else one after the other.

    Raises:
        ConfigError: it will never be answered.
        TransportError: the server did not even answer once.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        # A terminal must get its cursor back.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    shown, finished = _shown(asker, seconds, as_json)
    console = Console()
    in_place = console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
        while True:
            if live is not None:
                live.update(Text(shown), refresh=True)
            else:
                typer.echo(shown)
            if finished:
                return
            time.sleep(EVERY_SECONDS)
            try:
                shown, finished = _shown(asker, seconds, as_json)
            except TransportError as error:
                shown = json.dumps({"error": str(error)}) if as_json else f"{error}; trying again"
