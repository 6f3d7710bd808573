"""`prism compare`: runs beside one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.errors import PrismError


def compare(
    directories: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of runs, finished or not.")
    ],
    plot: Annotated[Path | None, typer.Option(help="Write the curves, such as curves.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a run.")] = False,
) -> None:
    """Show runs beside one another: quality, bytes, seconds, configs.

    Quality is that of a run's latest evaluation; without output.evaluate_every there is none, and
    the loss says something only beside runs that match the same features.

    \b
    prism compare runs/quickstart runs/mine
    prism compare runs/quickstart runs/mine --plot curves.png
    """
    from rich.console import Console

    from prism.comparison import Run, differences, summary, table

    try:
        runs = [Run.read(directory) for directory in directories]
        if plot is not None:
            from prism.plot import plot_runs

            plot_runs(runs, plot)
    except PrismError as error:
        raise SystemExit(f"prism compare: {error}") from error
    if as_json:
        for run in runs:
            typer.echo(json.dumps(summary(run)))
        return
    Console().print(table(runs))
    for key, values in differences(runs).items():
        typer.echo(f"{key}: {', '.join(json.dumps(value) for value in values)}")
