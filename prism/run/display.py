"""How a local run goes, read from the files that it leaves: what is shown is what is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from common.config import RunConfig

_SHOWN = 12
_COLUMNS = ("round", "clients", "lambda", "entropy", "up", "down", "seconds")


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
    """A live table in a terminal; a line a round where output goes to a file."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._metrics = _Tail(directory / "metrics.jsonl")
        self._traffic = _Tail(directory / "comm.jsonl")
        self._bytes: dict[int, dict[str, int]] = {}
        # Rounds of a previous process are shown, but do not count for the time that is left.
        self._rounds = self._metrics.read()
        self._earlier = len(self._rounds)
        self._console = Console()
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} rounds, {task.fields[eta]}"),
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
        if kind is None and self._rounds:
            out = self._directory
            line = f"model: {out}/model.prism   picture: {out}/samples.png"
            self._print(line)

    def refresh(self) -> None:
        """Read what is new and show it."""
        for line in self._traffic.read():
            totals = self._bytes.setdefault(line["round"], {"up": 0, "down": 0})
            totals[line["direction"]] += line["message_bytes"]
        for line in self._metrics.read():
            self._rounds.append(line)
            if not self._console.is_terminal:
                self._print(self._line(line))
        if self._console.is_terminal:
            self._live.update(self._table())

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _line(self, metrics: dict[str, Any]) -> str:
        cells = [
            f"{name} {value}" for name, value in zip(_COLUMNS, self._cells(metrics), strict=True)
        ]
        return "  ".join([*cells, self._eta()])

    def _table(self) -> Table:
        done = self._rounds[-1]["round"] + 1 if self._rounds else 0
        eta = self._eta() or "waiting for clients"
        self._progress.update(self._task, completed=done, eta=eta)
        table = Table(*_COLUMNS, title_justify="left", box=None, pad_edge=False)
        for metrics in self._rounds[-_SHOWN:]:
            table.add_row(*self._cells(metrics))
        outer = Table.grid()
        outer.add_row(table)
        outer.add_row(self._progress)
        return outer

    def _cells(self, metrics: dict[str, Any]) -> list[str]:
        traffic = self._bytes.get(metrics["round"], {"up": 0, "down": 0})
        lam, entropy = metrics["lambda"], metrics["entropy_bits"]
        return [
            str(metrics["round"]),
            str(metrics["clients"]),
            "-" if lam is None else f"{lam:.3f}",
            "-" if entropy is None else f"{entropy:.3f}",
            _size(traffic["up"]),
            _size(traffic["down"]),
            f"{metrics['seconds']:.1f}",
        ]

    def _eta(self) -> str:
        here = len(self._rounds) - self._earlier
        to_do = self._config.rounds - len(self._rounds)
        if to_do <= 0:
            return "done"
        if not here:
            return ""
        left = (time.monotonic() - self._started) / here * to_do
        return f"ETA {int(left // 60)}:{int(left % 60):02d}"


def _size(count: int) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.2f} MB"
