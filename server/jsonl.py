"""The server's own files of one JSON object a line, as a restart finds them."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from common.files import write_atomically

log = logging.getLogger(__name__)


def cut_lines(path: Path, before: float = math.inf) -> None:
    """Drop the lines of later rounds, and what a crash left unreadable.

    Args:
        path: of the file, which may be missing. Each line has an integer `round`.
        before: the first round whose lines are dropped.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    kept = b"".join(
        line
        for line in data.splitlines(keepends=True)
        if (round_ := _round(path, line)) is not None and round_ < before
    )
    if kept != data:
        write_atomically(path, kept)


def last_round(path: Path) -> int | None:
    """The round of the last line of a file that `cut_lines` has been over; None without any."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["round"]) if lines else None


def _round(path: Path, line: bytes) -> int | None:
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        content = None
    round_ = content.get("round") if isinstance(content, dict) else None
    if not isinstance(round_, int):
        log.warning("%s: dropped a line that was not written whole", path)
        return None
    return round_
