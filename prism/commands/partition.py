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
    from rich.markup import escape
    from rich.table import Table

    from common.config import load_config
    from common.data import class_labels, label_histogram, open_source, split_by
    from common.data import partition as cut
    from prism.own_images import fitted

    try:
        run = load_config(config, fitted(config, override or (), data, typer.echo))
        source = open_source(data or run.data.name, data_dir)
        labels, names = class_labels(source, run), run.classes
        if labels is None:
            labels, names = source.labels, source.class_names
        if labels is None:
            raise DataError("these images have no labels to show a partition by")
        parts = cut(split_by(source, run), run.data, run.seed)
        histogram = label_histogram(parts, labels, len(names))
        if plot is not None:
            from prism.plot import plot_partition

            plot_partition(histogram, names, plot)
    except PrismError as error:
        raise SystemExit(f"prism partition: {error}") from error
    table = Table("client", *map(escape, names), "images", box=None)
    for client, row in enumerate(histogram):
        cells = [str(count) if count else "." for count in row.tolist()]
        table.add_row(str(client), *cells, str(int(row.sum())))
    Console().print(table)
