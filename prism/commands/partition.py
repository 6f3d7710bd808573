"""`prism partition`: who would hold what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common.config import load_config
from common.data import label_histogram, open_source
from common.data import partition as cut
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


def plot_partition(
    histogram: NDArray[np.int64], path: Path, class_names: Sequence[str] = ()
) -> None:
    """Draw a label histogram as one stacked bar per client.

    Args:
        histogram: (clients, classes), see `partition.label_histogram`.
        path: where to write; its suffix is the format.
        class_names: what the classes are called; by default their numbers.

    Raises:
        DataError: the file cannot be written.
    """
    clients, classes = histogram.shape
    names = class_names or [str(label) for label in range(classes)]
    figure = Figure(figsize=(8, 1.2 + 0.3 * clients), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2"]
    colours += ["#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"]
    rows = np.arange(clients)
    left = np.zeros(clients, dtype=np.int64)
    for label in range(classes):
        width = histogram[:, label]
        colour = colours[label % len(colours)]
        axes.barh(rows, width, left=left, color=colour, label=names[label])
        left += width
    axes.set(xlabel="images", ylabel="client", yticks=rows, ylim=(clients - 0.5, -0.5))
    if classes <= 20:
        figure.legend(loc="outside right center", frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {error}") from error
