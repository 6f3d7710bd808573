"""A file of one JSON object a line that only grows, and that knows what a crash may not take.

Nothing is buffered: a line that was appended outlives this process. A mark, which the journal
keeps, says how much of the file is on the disk and what its digest is. What stands there at the
next start must begin with exactly that; what follows is checked line by line, and a line that a
crash cut short is cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from common.errors import StorageError

log = logging.getLogger(__name__)


class Mark(NamedTuple):
    """What of a file is on the disk.

    Attributes:
        size: bytes, whole lines.
        digest: SHA-256 of them, hexadecimal.
    """

    size: int = 0
    digest: str = hashlib.sha256().hexdigest()


class LineFile:
    """A file of lines open for appending, in any thread; made by `open`."""

    def __init__(self, path: Path, file: IO[bytes], content: bytes) -> None:
        self.path = path
        self._file = file
        self._size = len(content)
        self._sha = hashlib.sha256(content)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, mark: Mark) -> tuple[LineFile, list[dict[str, Any]]]:
        """Check a file, cut off a torn end, and make ready to append.

        Returns:
            The file, and its lines behind the mark.

        Raises:
            StorageError: it does not begin with what was marked, or holds something that is no
                line.
            OSError: it cannot be read or written.
        """
        content = path.read_bytes() if path.exists() else b""
        marked = content[: mark.size]
        if (len(marked), hashlib.sha256(marked).hexdigest()) != mark:
            raise StorageError(
                f"{path} is not what the server wrote: put a copy of it back, or move it away and "
                "do without what it said of earlier rounds"
            )
        end = max(mark.size, content.rfind(b"\n") + 1)
        lines = [
            read_line(path, raw, marked.count(b"\n") + number)
            for number, raw in enumerate(content[mark.size : end].splitlines(), 1)
        ]
        file = path.open("ab", buffering=0)
        if end < len(content):
            log.warning("%s: cut off %d bytes of an unfinished line", path, len(content) - end)
            file.truncate(end)
        return cls(path, file, content[:end]), lines

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Add lines, all or none of them.

        Raises:
            OSError: they cannot be written.
        """
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        with self._lock:
            rest = memoryview(content)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                # A line that stands half in the middle of a file could not be told from damage.
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)
                raise
            self._size += len(content)
            self._sha.update(content)

    def mark(self) -> Mark:
        """Put everything on the disk, and say what that is."""
        with self._lock:
            os.fsync(self._file.fileno())
            return Mark(self._size, self._sha.hexdigest())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_line(path: Path, raw: bytes, number: int) -> dict[str, Any]:
    """One line of such a file, which has an integer `round` of 0 or more.

    Raises:
        StorageError: it is no such line.
    """
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        line = None
    round_ = line.get("round") if isinstance(line, dict) else None
    if not isinstance(line, dict) or type(round_) is not int or round_ < 0:
        raise StorageError(
            f"{path}, line {number}: not what this program writes: put a copy of the file back, or "
            "move it away"
        )
    return line
