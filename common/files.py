"""Files that are whole or not there, and that show it if a bit of them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

_DIGEST_BYTES: Final = hashlib.sha256().digest_size


def sealed(content: bytes) -> bytes:
    """Content with its SHA-256 before it, for `unsealed` to check."""
    return hashlib.sha256(content).digest() + content


def unsealed(data: bytes) -> bytes:
    """What was sealed.

    Raises:
        ValueError: it is not what was written.
    """
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("the digest does not match the content")
    return content


def failure_of(error: BaseException) -> str:
    """What went wrong, and with which file if it was one; in one line."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does: its number, time and size; None of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that it is whole, old or new, whatever happens; durable on return."""
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
