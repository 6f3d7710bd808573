"""Runs beside one another: how good, for how many bytes, in how long."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from common.config import RunConfig, load_config
from common.config_text import flat
from common.errors import ConfigError
from prism.comm.lines import Call, Evaluated, Round, read_lines

DISTANCES = ("FD ", "FID ")
"""What the name of a distance between the model's images and real ones begins with."""


@dataclass(frozen=True)
class Run:
    """What a run's directory says of it.

    Attributes:
        name: of the directory.
        config: the run's.
        rounds: of metrics.jsonl, in order.
        evaluations: of evaluation.jsonl, likewise: rounds closed, and figures by name.
        bytes: (rounds,) of all messages of the round and those before, both ways together.
        up: bytes of messages to the server.
        down: bytes of messages from it.
    """

    name: str
    config: RunConfig
    rounds: tuple[Round, ...]
    evaluations: tuple[tuple[int, dict[str, float]], ...]
    bytes: tuple[int, ...]
    up: int
    down: int

    @classmethod
    def read(cls, directory: Path) -> Run:
        """A run, finished or not.

        Raises:
            ConfigError: the directory holds no run, or one that has not closed a round.
            StorageError: a file of it cannot be read.
        """
        config = load_config(directory / "config.toml")
        metrics = directory / "metrics.jsonl"
        rounds = tuple(read_lines(metrics, Round)) if metrics.exists() else ()
        if not rounds:
            raise ConfigError(f"{directory} has closed no round yet: there is nothing to compare")
        each = dict.fromkeys((line.round for line in rounds), 0)
        ways = {"up": 0, "down": 0}
        for call in read_lines(directory / "comm.jsonl", Call):
            ways[call.direction] += call.message_bytes
            # What followed the last round counts with it.
            each[min(max(call.round, rounds[0].round), rounds[-1].round)] += call.message_bytes
        path = directory / "evaluation.jsonl"
        lines = read_lines(path, Evaluated) if path.exists() else ()
        evaluations = tuple((line.round, line.figures()) for line in lines)
        moved = tuple(int(total) for total in np.cumsum(list(each.values())))
        name = directory.resolve().name
        return cls(name, config, rounds, evaluations, moved, ways["up"], ways["down"])

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return sum(line.seconds for line in self.rounds)

    @property
    def distances(self) -> tuple[str, ...]:
        """Names of the distances that were measured."""
        found = {name for _, figures in self.evaluations for name in figures}
        return tuple(sorted(name for name in found if name.startswith(DISTANCES)))

    def last(self, figure: str) -> float | None:
        """The latest value of a figure of the evaluations."""
        return next((of[figure] for _, of in reversed(self.evaluations) if figure in of), None)

    def bytes_until(self, closed: int) -> int:
        """Of all messages until so many rounds were closed."""
        numbers = [line.round for line in self.rounds]
        return self.bytes[min(max(bisect_left(numbers, closed) - 1, 0), len(self.bytes) - 1)]


def summary(run: Run) -> dict[str, Any]:
    """What a row of the table says, for a program."""
    return {
        "run": run.name,
        "method": run.config.method,
        "rounds": len(run.rounds),
        **{name: run.last(name) for name in (*run.distances, "coverage")},
        "loss": run.rounds[-1].loss,
        "up_bytes": run.up,
        "down_bytes": run.down,
        "seconds": round(run.seconds, 3),
    }


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Keys in which the configs differ, but for their names; and what each run has."""
    flats = [dict(flat(run.config.model_dump(mode="json"))) for run in runs]
    keys = [key for key in flats[0] if key not in ("name", "data.classes")]
    return {
        key: [one[key] for one in flats]
        for key in keys
        if any(one[key] != flats[0][key] for one in flats)
    }


def table(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    distances = sorted({name for run in runs for name in run.distances})
    names = ["run", "method", "rounds", *distances, "coverage", "loss"]
    shown = Table(*map(escape, [*names, "MB up", "MB down", "seconds", "s a round"]), box=None)
    for run in runs:
        figures = [*(run.last(name) for name in (*distances, "coverage")), run.rounds[-1].loss]
        shown.add_row(
            escape(run.name),
            run.config.method,
            str(len(run.rounds)),
            *("-" if value is None else f"{value:.3g}" for value in figures),
            f"{run.up / 1e6:.3g}",
            f"{run.down / 1e6:.3g}",
            f"{run.seconds:.0f}",
            f"{run.seconds / len(run.rounds):.2f}",
        )
    return shown
