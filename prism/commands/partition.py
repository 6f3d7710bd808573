"""`prism partition`: who would hold what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataDir, Override, RunData
from common.errors import DataError, PrismError


def partition(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/mnist.toml.")],
    override: Override = None,
    data: RunData = None,
    data_dir: DataDir = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of it.")] = None,
) -> None:
    """Show how a config divides its data set among the clients.

    \b
    prism partition configs/quickstart.toml --plot partition.png
    prism partition configs/mnist.toml --data-dir data --set 'data.partition="shards"'
    prism partition configs/quickstart.toml --data folder:PATH
    """
    from rich.console import Console

    from common.config import load_config
    from common.data import open_source
    from prism.holdings import Holdings
    from prism.own_images import fitted

    try:
        run = load_config(config, fitted(config, override or (), data, typer.echo))
        held = Holdings.of(run, open_source(data or run.data.name, data_dir))
        if not held.classes:
            raise DataError("these images have no labels to show a partition by")
        if plot is not None:
            from prism.plot import plot_partition

            plot_partition(held.counts, held.classes, plot)
    except PrismError as error:
        raise SystemExit(f"prism partition: {error}") from error
    Console().print(held.table())
