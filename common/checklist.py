"""Things that are tried one after the other, whatever became of those before."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from common.errors import ConfigError, PrismError

Result = TypeVar("Result")


class Checklist:
    """What was found, a line each.

    Args:
        say: is given each line, once it is known.

    Attributes:
        problems: lines that keep a run from working.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.problems: list[str] = []

    def ok(self, line: str) -> None:
        """Something is as it should be."""
        self._say(f"ok       {line}")

    def note(self, line: str) -> None:
        """Something that a person should know, and that keeps nothing from working."""
        self._say(f"note     {line}")

    def problem(self, line: str) -> None:
        """Something would fail."""
        self.problems.append(line)
        self._say(f"PROBLEM  {line}")

    def attempt(self, check: Callable[[], Result]) -> Result | None:
        """Try something; a problem for each line of the error, and None, if it fails."""
        try:
            return check()
        except PrismError as error:
            for line in str(error).splitlines():
                self.problem(line)
        except OSError as error:
            self.problem(f"cannot use {error.filename}: {error.strerror}")
        return None


def check_writable(directory: Path, wanted: int = 0) -> int:
    """Whether files can be written where a directory is, or would be made; leaves nothing.

    Args:
        directory: need not be there.
        wanted: bytes that it must take.

    Returns:
        bytes that are free.

    Raises:
        ConfigError: nothing can be written there, or not as much.
    """
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {there}: {error.strerror}") from error
    if free < wanted:
        raise ConfigError(
            f"{directory} would take {wanted / 1e6:,.0f} MB, and {free / 1e6:,.0f} are free there"
        )
    return free
