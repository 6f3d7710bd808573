"""`prism partition`: who would hold what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common.config import load_config
from common.data import label_histogram, open_source
from common.data import partition as cut
from common.data.plot import plot_partition
from common.errors import DataError, PrismError


def partition(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/mnist.toml.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images, as in `prism client`; by default data.name.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist, fmnist, cifar10 or celeba lie.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of it.")] = None,
) -> None:
    """Show how a config cuts its data set among the clients, class by class.

    \b
    prism partition configs/quickstart.toml --plot partition.png
    prism partition configs/mnist.toml --data-dir data --set 'data.partition="shards"'
    """
    try:
        run = load_config(config, override or ())
        source = open_source(data or run.data.name, data_dir)
        if source.labels is None:
            raise DataError("these images have no labels to show a partition by")
        parts = cut(source.labels, run.data, run.seed)
        histogram = label_histogram(parts, source.labels)
        if plot is not None:
            plot_partition(histogram, plot)
    except PrismError as error:
        raise SystemExit(f"prism partition: {error}") from error
    table = Table("client", *map(str, range(histogram.shape[1])), "images", box=None)
    for client, row in enumerate(histogram):
        cells = [str(count) if count else "." for count in row.tolist()]
        table.add_row(str(client), *cells, str(int(np.sum(row))))
    Console().print(table)
