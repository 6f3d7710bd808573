"""`prism privacy`: what guarantee the ledgers add up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.errors import PrismError


def privacy(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A client's --state, or a run of `prism run`.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a client.")] = False,
) -> None:
    """Say what privacy holds for a client's images, and what does not.

    Read from the ledger that the client keeps; exit code 1 if it was tampered with.

    \b
    prism privacy client-state
    prism privacy runs/quickstart
    """
    from prism.guarantee import read_ledgers, report, summary

    try:
        held = read_ledgers(directory)
    except PrismError as error:
        raise SystemExit(f"prism privacy: {error}") from error
    if as_json:
        for path, entries in held.items():
            typer.echo(json.dumps({"state": str(path), **summary(entries)}))
    else:
        typer.echo("\n".join(report(held)))
