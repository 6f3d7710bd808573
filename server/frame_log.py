"""Files that survive a crash: atomic replacement, and an append-only log of entries.

A log begins with a random marker. Each entry is a frame: the marker, length and CRC32 of the
body, CRC32 of the frame's head; then the body, which is a line of JSON and a payload. A frame
that the end of the file cuts short was never acknowledged and is cut off; damage before a
good frame is refused, not repaired. The marker keeps a payload from posing as a frame.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from common.errors import StorageError
from common.files import write_atomically

MARKER_BYTES: Final = 8
_SIZES: Final = struct.Struct("<II")
_HEAD_BYTES: Final = MARKER_BYTES + _SIZES.size + 4

Entry = tuple[Mapping[str, Any], bytes]

log = logging.getLogger(__name__)


class FrameLog:
    """A log open for appending; made by `create` or `open`."""

    def __init__(self, file: FileIO, marker: bytes) -> None:
        self._file = file
        self._marker = marker
        self._unwritten = bytearray()
        self._synced = True

    @classmethod
    def create(cls, path: Path, first: Mapping[str, Any]) -> FrameLog:
        """Start a log with one entry; the file appears whole or not at all."""
        marker = os.urandom(MARKER_BYTES)
        write_atomically(path, marker + _frame(marker, first, b""))
        file = path.open("r+b", buffering=0)
        file.seek(0, os.SEEK_END)
        return cls(file, marker)

    @classmethod
    def open(cls, path: Path) -> tuple[FrameLog, list[Entry]]:
        """Read a log back, cut off a torn end, and make ready to append.

        Raises:
            StorageError: the log is damaged elsewhere than at its end.
        """
        data = path.read_bytes()
        marker = data[:MARKER_BYTES]
        entries, end = _entries(path, data)
        later = (match.start() for match in re.finditer(re.escape(marker), data[end + 1 :]))
        if not entries or any(_body_at(data, marker, end + 1 + at) is not None for at in later):
            raise StorageError(f"{path} is damaged at byte {end}: restore it from a copy")
        file = path.open("r+b", buffering=0)
        if end < len(data):
            log.warning("%s: cut off %d bytes of an unfinished entry", path, len(data) - end)
            file.truncate(end)
            os.fsync(file.fileno())
        file.seek(end)
        return cls(file, marker), entries

    def read_back(self) -> list[Entry]:
        """All entries so far, brought to the disk and read from there.

        Raises:
            StorageError: the disk does not hold what was written.
        """
        self.sync()
        path = Path(self._file.name)
        data = path.read_bytes()
        entries, end = _entries(path, data)
        if end != len(data):
            raise StorageError(f"{path} is damaged at byte {end}: restore it from a copy")
        return entries

    def append(self, entry: Mapping[str, Any], payload: bytes = b"") -> None:
        """Add an entry; it is on the disk once `sync` returns."""
        self._unwritten += _frame(self._marker, entry, payload)
        self._synced = False

    def sync(self) -> None:
        """Bring to the disk what was appended since the last time."""
        while self._unwritten:
            del self._unwritten[: self._file.write(self._unwritten)]
        if not self._synced:
            os.fsync(self._file.fileno())
            self._synced = True

    def close(self) -> None:
        """Close the file; what was not synced is not written, so a full disk does not matter."""
        self._file.close()


def _frame(marker: bytes, entry: Mapping[str, Any], payload: bytes) -> bytes:
    body = json.dumps(entry).encode() + b"\n" + payload
    head = marker + _SIZES.pack(len(body), crc32(body))
    return head + crc32(head).to_bytes(4, "little") + body


def _entries(path: Path, data: bytes) -> tuple[list[Entry], int]:
    """The entries that a log begins with, and where they end."""
    entries: list[Entry] = []
    marker, end = data[:MARKER_BYTES], MARKER_BYTES
    while (body := _body_at(data, marker, end)) is not None:
        line, _, payload = body.partition(b"\n")
        try:
            entries.append((json.loads(line), payload))
        except (ValueError, RecursionError) as error:
            raise StorageError(
                f"{path} holds an entry that is not JSON: restore it from a copy"
            ) from error
        end += _HEAD_BYTES + len(body)
    return entries, end


def _body_at(data: bytes, marker: bytes, offset: int) -> bytes | None:
    """The body of the frame at an offset; None if there is no whole and good one."""
    head = data[offset : offset + _HEAD_BYTES]
    checked, checksum = head[:-4], int.from_bytes(head[-4:], "little")
    if len(head) < _HEAD_BYTES or not head.startswith(marker) or crc32(checked) != checksum:
        return None
    length, body_checksum = _SIZES.unpack(checked[MARKER_BYTES:])
    body = data[offset + _HEAD_BYTES : offset + _HEAD_BYTES + length]
    return body if len(body) == length and crc32(body) == body_checksum else None
