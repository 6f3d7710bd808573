"""A picture of who holds what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.errors import DataError


def plot_partition(histogram: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draw a label histogram as one stacked bar per client.

    Args:
        histogram: (clients, classes), see `partition.label_histogram`.
        names: what the classes are called.
        path: where to write; its suffix is the format.

    Raises:
        DataError: the file cannot be written.
    """
    clients = len(histogram)
    figure = Figure(figsize=(8, 1.2 + 0.3 * clients), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2"]
    colours += ["#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"]
    rows = np.arange(clients)
    left = np.zeros(clients, dtype=np.int64)
    for label, (name, width) in enumerate(zip(names, histogram.T, strict=True)):
        colour = colours[label % len(colours)]
        axes.barh(rows, width, left=left, color=colour, label=name.replace("$", r"\$"))
        left += width
    axes.set(xlabel="images", ylabel="client", yticks=rows, ylim=(clients - 0.5, -0.5))
    if len(names) <= 20:
        figure.legend(loc="outside right center", frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {error}") from error
