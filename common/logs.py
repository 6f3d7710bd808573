"""The log of a long-running command: lines for people or for programs, to stderr and to a file.

    2025-01-31T23:59:59.123+00:00 INFO round 3: 5 updates, lambda 0.0312, 8.4 s
    {"time": "2025-01-31T23:59:59.123+00:00", "level": "INFO", "logger": "server.engine", ...}

Times are in UTC, as in the files of a run. Only this project's own loggers follow the level that
was asked for; others tell warnings and worse.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from common.files import failure_of

_OURS: Final = ("server", "client", "common", "prism")
_ENDED: Final = "prism.ended"
"""The logger of the line that a process ends with; a person finds it on stderr as it is."""
_HELD: Final = 1000
"""Records that wait for a file, at most."""

log = logging.getLogger(__name__)


class LogLevel(StrEnum):
    """The least that is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a record is written."""

    TEXT = "text"
    JSON = "json"


Level = Annotated[LogLevel, typer.Option("--log-level", help="The least that is logged.")]
Format = Annotated[
    LogFormat, typer.Option("--log-format", help="Lines for people, or a JSON object each.")
]


class _Text(logging.Formatter):
    """Date, level, message; then a traceback, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return _time(record)


class _Json(logging.Formatter):
    """The same as an object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


class _File(logging.FileHandler):
    """A file that, once it cannot be written, is told of and given up; the work goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        logging.getLogger().removeHandler(self)
        # What it holds could not be written either.
        with suppress(OSError):
            self.close()
        error = sys.exc_info()[1]
        log.error("cannot write %s: %s", self.baseFilename, error)


def message_of(line: str) -> str:
    """A line of a log for people without its date and level; others as they are."""
    _, _, rest = line.partition(" ")
    level, _, message = rest.partition(" ")
    return message if level in logging.getLevelNamesMapping() else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class Log:
    """The log of this process; there is one at a time.

    Args:
        level: the least that is told.
        form: how.
        held: whether records are kept for a file that is opened later.
    """

    def __init__(
        self,
        level: LogLevel = LogLevel.INFO,
        form: LogFormat = LogFormat.TEXT,
        *,
        held: bool = False,
    ) -> None:
        self._form = form
        # What stderr was replaced by, so that it can be compared with a file.
        self._stream = sys.stderr
        console = logging.StreamHandler(self._stream)
        console.setFormatter(self._formatter())
        if form is LogFormat.TEXT:
            console.addFilter(lambda record: record.name != _ENDED)
        handlers: list[logging.Handler] = [console]
        self._held: logging.handlers.MemoryHandler | None = None
        if held:
            self._held = logging.handlers.MemoryHandler(_HELD, logging.CRITICAL + 1)
            handlers.append(self._held)
        logging.basicConfig(level=logging.WARNING, handlers=handlers)
        for name in _OURS:
            logging.getLogger(name).setLevel(level.upper())
        # What threads of libraries could not write, or files that are closed late, is no bug here.
        threading.excepthook = _failed_in_a_thread
        sys.unraisablehook = _failed_in_passing

    def into(self, path: Path) -> None:
        """Write to a file too, from the first record on; not if stderr is that file.

        Raises:
            OSError: it cannot be opened.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _File(path, encoding="utf-8")
        file.setFormatter(self._formatter())
        root, held, self._held = logging.getLogger(), self._held, None
        if self._writes_to(path):
            file.close()
        else:
            root.addHandler(file)
            if held is not None:
                held.setTarget(file)
        if held is not None:
            root.removeHandler(held)
            held.close()

    def ended(self, program: str, error: Exception) -> SystemExit:
        """What a process ends with: one line on stderr, and in the file."""
        line = f"{program}: {failure_of(error)}"
        logging.getLogger(_ENDED).error("%s", line)
        return SystemExit(1 if self._form is LogFormat.JSON else line)

    def _formatter(self) -> logging.Formatter:
        return _Json() if self._form is LogFormat.JSON else _Text()

    def _writes_to(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._stream.fileno()), path.stat())
        except (OSError, ValueError):
            return False


def _failed_in_a_thread(failed: threading.ExceptHookArgs) -> None:
    if isinstance(failed.exc_value, OSError):
        log.error("could not write: %s", failure_of(failed.exc_value))
    else:
        threading.__excepthook__(failed)


def _failed_in_passing(failed: sys.UnraisableHookArgs) -> None:
    if isinstance(failed.exc_value, OSError):
        log.error("could not write: %s", failure_of(failed.exc_value))
    else:
        sys.__unraisablehook__(failed)
