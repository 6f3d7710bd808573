"""Whether a run directory shows that its run was further than the journal says.

A journal that was deleted, or put back from an old copy, would start the run again from there and
overwrite what came after. So before anything is changed, all that is written after a checkpoint is
looked at: none of it can be of a later round than the checkpoint is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from common.config import RunConfig
from common.errors import ModelFileError, StorageError
from common.model.architecture import Architecture
from common.model.export import load_model
from server.line_file import read_line

_BOOKS: Final = ("metrics.jsonl", "comm.jsonl")
"""Begun when there is a log; see `server.books`."""
_TAIL_BYTES: Final = 1 << 16
"""Of a file of lines, whose rounds grow, are looked at; more where a line is longer."""


def check_not_further(out: Path, config: RunConfig, round_: int, *, checkpoint: bool) -> None:
    """Refuse a run directory that was further.

    Args:
        out: the run directory.
        config: the run.
        round_: the round that the journal is at; rounds that were closed.
        checkpoint: whether there is one; without, the round is 0.

    Raises:
        StorageError: something shows that the run was further, or the log of the open round is
            gone, which may have held acknowledged updates.
        OSError: a file cannot be read.
    """
    journal = out / "journal"
    for path, reached in _reached(out, config):
        if reached > round_:
            raise StorageError(
                f"{path} shows that the run was at round {reached}, and its journal is at round "
                f"{round_}: put a copy of {journal} back, or choose another --out; nothing was "
                "changed"
            )
    # Between a checkpoint and the log that follows it there is still the log before.
    logs = [journal / f"round-{number:06d}.log" for number in (round_, round_ - 1)]
    begun = checkpoint or any((out / name).exists() for name in _BOOKS)
    if begun and not any(log.exists() for log in logs):
        missing = logs[0] if checkpoint else journal / "checkpoint"
        raise StorageError(
            f"{missing} is gone, and with it what was acknowledged: put a copy of {journal} back, "
            "or choose another --out; nothing was changed"
        )


def _reached(out: Path, config: RunConfig) -> Iterator[tuple[Path, int]]:
    """Files, and the round that the journal was at, at least, when each was written."""
    for name, after in (("metrics.jsonl", 1), ("comm.jsonl", 0), ("evaluation.jsonl", 0)):
        yield out / name, after + _last_round(out / name)
    for path in (out / "journal").glob("round-*.log"):
        yield path, _number(path)
    for path in (out / "samples").glob("round-*.png"):
        yield path, _number(path)
    # One that is damaged, or of another run, tells nothing; it will be exported again.
    with suppress(ModelFileError):
        model = load_model(out / "model.prism")
        if (model.seed, model.architecture) == (config.seed, Architecture.of(config)):
            yield out / "model.prism", model.round


def _number(path: Path) -> int:
    found = re.fullmatch(r"round-(\d{1,18})", path.stem)
    return int(found[1]) if found else 0


def _last_round(path: Path) -> int:
    """The latest round that the end of a file of lines tells of; -1 without any."""
    if not path.exists():
        return -1
    tail = _TAIL_BYTES
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            file.seek(max(0, size - tail))
            lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines[tail < size :] if line.endswith(b"\n")]
            if whole or tail >= size:
                break
            tail *= 2
    # Damage is named where the file is read whole.
    return max((_round(path, line) for line in whole), default=-1)


def _round(path: Path, line: bytes) -> int:
    try:
        return int(read_line(path, line, 0)["round"])
    except StorageError:
        return -1
