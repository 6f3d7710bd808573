"""`prism comm`: what a run's communication cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.errors import PrismError


def comm(
    run: Annotated[Path, typer.Argument(help="A run's directory, finished or not.")],
    since: Annotated[
        int, typer.Option(min=0, help="Leave out the rounds before; sockets are then modelled.")
    ] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a run cost in bytes, from the codec to the socket.

    Payloads, messages and sockets, beside FP32 FedAvg. Socket bytes are there if relays counted
    them: `prism run --relay`, or `prism relay --log RUN/relay/CLIENT.jsonl` before a client on
    any machine.

    \b
    prism comm runs/quickstart
    prism comm runs/quickstart --since 90
    prism comm runs/quickstart --json
    """
    from prism.comm.report import report, show
    from prism.comm.traffic import Ledger

    try:
        ledger = Ledger.read(run, since)
    except PrismError as error:
        raise SystemExit(f"prism comm: {error}") from error
    if json_:
        typer.echo(json.dumps(report(ledger), indent=2))
    else:
        show(ledger)
