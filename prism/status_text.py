"""A run's status for a person, in lines that fit a terminal and a pipe alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from client.status import ClientStatus, Problem, Status
from prism.figures_text import duration_text, printable, size_text

_SHOWN: Final = 5
"""Problems, the newest."""


def status_lines(status: Status) -> list[str]:
    """All of it, whatever the server sent."""
    return [printable(line) for line in _lines(status)]


def _lines(status: Status) -> Iterator[str]:
    where = f"{status.run}: round {status.round} of {status.rounds}, {status.phase}"
    if status.phase != "finished":
        where += f" for {duration_text(status.phase_seconds)}"
        if status.seconds_left is not None:
            where += f", about {duration_text(status.seconds_left)} left"
    yield where
    if status.waits_for:
        yield status.waits_for
    if status.quality_round is not None:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in status.quality.items())
        yield f"quality after {status.quality_round} rounds: {figures}"
    if status.clients:
        yield ""
        yield from _table([("client", "state", "last update", ""), *map(_client, status.clients)])
    if status.problems:
        yield ""
        yield "last errors"
        yield from map(_problem, status.problems[:_SHOWN])


def _client(client: ClientStatus) -> tuple[str, str, str, str]:
    last = ""
    if client.seconds is not None and client.payload_bytes is not None:
        last = f"{client.seconds:.1f} s, {size_text(client.payload_bytes)}"
    told = "far from the others, not counted" if client.far_off else ""
    if client.missed:
        deadlines = "a deadline" if client.missed == 1 else f"{client.missed} deadlines in a row"
        told = f"missed {deadlines}; asked again from round {client.left_out_until}"
    return client.name or "(not told)", client.state, last, told


def _problem(problem: Problem) -> str:
    when = datetime.fromtimestamp(problem.unix_seconds, UTC)
    times = f" ({problem.times} times)" if problem.times > 1 else ""
    return (
        f"{when:%H:%M:%S} {problem.rpc} of {problem.caller}: {problem.code} {problem.error}: "
        f"{problem.message}{times}"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()
