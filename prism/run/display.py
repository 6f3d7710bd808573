"""How a local run goes, read from the files that it leaves: what is shown is what is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from common.config import RunConfig
from common.logs import message_of
from prism.figures_text import duration_text, printable, size_text, sparkline
from prism.run.processes import Member

_SHOWN = 10
"""Rounds and clients, at most."""
_BARS = 60


class _Tail:
    """The complete lines that a growing JSONL file gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._at:
            self._at = 0
        with self._path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        end = content.rfind(b"\n") + 1
        self._at += end
        return [line for raw in content[:end].splitlines() if (line := _parsed(raw)) is not None]


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A line's content; None where a crash left it unreadable, which the server mends."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "round" in line else None


class RunDisplay:
    """Tables in a terminal; a line a round, and an evaluation, where output goes to a file.

    Attributes:
        members: the processes whose last lines are shown, the server first.
    """

    def __init__(self, config: RunConfig, directory: Path) -> None:
        self.members: Sequence[Member] = ()
        self._config = config
        self._directory = directory
        self._metrics = _Tail(directory / "metrics.jsonl")
        self._traffic = _Tail(directory / "comm.jsonl")
        self._evaluations = _Tail(directory / "evaluation.jsonl")
        self._bytes: dict[int, dict[str, int]] = {}
        # Rounds of a previous process are shown, but do not count for the time that is left.
        self._rounds = self._metrics.read()
        self._earlier = len(self._rounds)
        self._quality = {line["round"]: line for line in self._evaluations.read()}
        self._console = Console()
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} rounds  {task.fields[eta]}"),
        )
        self._task = self._progress.add_task(
            f"{config.name}: {config.method} on {config.data.name}", total=config.rounds, eta=""
        )
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        self.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refresh()
        if self._console.is_terminal:
            self._live.stop()

    def done(self) -> None:
        """Say where the results are."""
        if self._rounds:
            self._print(
                f"model: {self._directory}/model.prism   picture: {self._directory}/samples.png"
            )

    def refresh(self) -> None:
        """Read what is new and show it."""
        for line in self._traffic.read():
            totals = self._bytes.setdefault(line["round"], {"up": 0, "down": 0})
            totals[line["direction"]] += line["message_bytes"]
        for line in self._metrics.read():
            self._rounds.append(line)
            if not self._console.is_terminal:
                self._print(self._line(line))
        for line in self._evaluations.read():
            self._quality[line["round"]] = line
            if not self._console.is_terminal:
                self._print(f"after {line['round']} rounds  {_shown(line)}")
        if self._console.is_terminal:
            self._live.update(self._all())

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _line(self, metrics: dict[str, Any]) -> str:
        cells = [f"{name} {value}" for name, value in self._cells(metrics).items() if value]
        return "  ".join([*cells, self._eta()]).rstrip()

    def _all(self) -> Group:
        done = self._rounds[-1]["round"] + 1 if self._rounds else 0
        self._progress.update(self._task, completed=done, eta=self._eta())
        return Group(self._table(), *self._said(), *self._curves(), self._progress)

    def _table(self) -> Table:
        shown = [self._cells(metrics) for metrics in self._rounds[-_SHOWN:]]
        table = Table(*(shown[0] if shown else ()), box=None, pad_edge=False)
        for cells in shown:
            table.add_row(*cells.values())
        return table

    def _said(self) -> list[Text]:
        """What each process does, in its own words: the last line of its log."""
        width = max((len(member.name) for member in self.members), default=0)
        lines = [
            f"{member.name:{width}}  {printable(message_of(member.last_line()))}"
            for member in self.members[: _SHOWN + 1]
        ]
        if (more := len(self.members) - len(lines)) > 0:
            lines.append(f"and {more} more: {self._directory}/logs")
        return [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]

    def _curves(self) -> list[Text]:
        losses = [line["loss"] for line in self._rounds if line["loss"] is not None]
        distances = [_distance(line)[1] for _, line in sorted(self._quality.items())]
        curves = {"loss": losses, self._distance_name: distances}
        return [
            Text(f"{name}  {sparkline(values[-_BARS:])}  {values[-1]:.4g}")
            for name, values in curves.items()
            if len(values) > 1
        ]

    @property
    def _distance_name(self) -> str:
        return next((_distance(line)[0] for line in self._quality.values()), "quality")

    def _cells(self, metrics: dict[str, Any]) -> dict[str, str]:
        """What is shown of a round, by column; columns that would always say the same are not."""
        traffic = self._bytes.get(metrics["round"], {"up": 0, "down": 0})
        cells = {"round": str(metrics["round"]), "clients": str(metrics["clients"])}
        cells["loss"] = _number(metrics["loss"], ".3g")
        if self._config.output.evaluate_every:
            evaluated = self._quality.get(metrics["round"] + 1)
            cells[self._distance_name] = f"{_distance(evaluated)[1]:.4g}" if evaluated else ""
        if self._config.mada.enabled:
            cells["lambda"] = _number(metrics["lambda"], ".3f")
        if metrics["entropy_bits"] is not None:
            cells["entropy"] = _number(metrics["entropy_bits"], ".3f")
        up, down = size_text(traffic["up"]), size_text(traffic["down"])
        return cells | {"up": up, "down": down, "seconds": f"{metrics['seconds']:.1f}"}

    def _eta(self) -> str:
        here = len(self._rounds) - self._earlier
        to_do = self._config.rounds - len(self._rounds)
        if to_do <= 0:
            return "done"
        if not here:
            return ""
        return f"ETA {duration_text((time.monotonic() - self._started) / here * to_do)}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _distance(line: dict[str, Any]) -> tuple[str, float]:
    """Name and value of the first figure of an evaluation, which is the Frechet distance."""
    name = next(name for name, value in line.items() if isinstance(value, float))
    return name, line[name]


def _shown(line: dict[str, Any]) -> str:
    name, value = _distance(line)
    return f"{name} {value:.4g}"
