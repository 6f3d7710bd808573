"""Figures as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_BARS: Final = "▁▂▃▄▅▆▇█"


def size_text(count: int) -> str:
    """Bytes, in powers of 1000."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.2f} MB"


def duration_text(seconds: float) -> str:
    """Seconds as 2:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: Iterable[float]) -> str:
    """A bar for each value, between the least and the greatest; empty without values."""
    known = list(values)
    if not known:
        return ""
    low, width = min(known), (max(known) - min(known)) or 1.0
    return "".join(_BARS[round((value - low) / width * (len(_BARS) - 1))] for value in known)


def printable(line: str) -> str:
    """The line, with nothing in it that could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in line)
