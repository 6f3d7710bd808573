"""Pictures of who holds what, and of how runs went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.errors import DataError
from prism.comparison import Run


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
    _save(figure, path)


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw a line for each run: its distances against rounds and bytes, and its loss.

    Args:
        runs: that are compared.
        path: where to write; its suffix is the format.

    Raises:
        DataError: the file cannot be written.
    """
    distances = sorted({name for run in runs for name in run.distances})
    rows = len(distances) + 1
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for run in runs:
        label = run.name.replace("$", r"\$")
        for row, name in enumerate(distances):
            points = [(closed, of[name]) for closed, of in run.evaluations if name in of]
            values = [value for _, value in points]
            axes[row, 0].plot([closed for closed, _ in points], values, marker=".", label=label)
            moved = [run.bytes_until(closed) / 1e6 for closed, _ in points]
            axes[row, 1].plot(moved, values, marker=".", label=label)
        losses = [math.nan if line.loss is None else line.loss for line in run.rounds]
        axes[-1, 0].plot([line.round + 1 for line in run.rounds], losses, label=label)
        axes[-1, 1].plot([moved / 1e6 for moved in run.bytes], losses, label=label)
    for row, name in enumerate([*distances, "loss"]):
        for column, what in enumerate(("rounds", "MB, both ways")):
            axes[row, column].set(xlabel=what, ylabel=name)
            axes[row, column].set_yscale("log")
    axes[0, 0].legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {error}") from error
