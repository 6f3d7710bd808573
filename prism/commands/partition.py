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
    """
    from rich.console import Console
    from rich.table import Table

    from common.config import load_config
    from common.data import label_histogram, open_source
    from common.data import partition as cut

    try:
        run = load_config(config, override or ())
        source = open_source(data or run.data.name, data_dir)
        if source.labels is None:
            raise DataError("these images have no labels to show a partition by")
        parts = cut(source.labels, run.data, run.seed)
        histogram = label_histogram(parts, source.labels)
        if plot is not None:
            from prism.plot import plot_partition

            plot_partition(histogram, plot)
    except PrismError as error:
        raise SystemExit(f"prism partition: {error}") from error
    table = Table("client", *map(str, range(histogram.shape[1])), "images", box=None)
    for client, row in enumerate(histogram):
        cells = [str(count) if count else "." for count in row.tolist()]
        table.add_row(str(client), *cells, str(int(row.sum())))
    Console().print(table)
