"""What a run is resumed from, and what it is told by: the journal, and the books behind it.

The journal comes first. The books say of rounds and updates what is in the journal on the disk, and
before a checkpoint takes the place of the log that they could be mended from, they are there too.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from common.config import RunConfig
from server.books import Books
from server.journal import Journal
from server.recovered import Checkpoint, StoredUpdate


class Storage:
    """Both, of one run directory; one thread at a time may use them, but for `Books.calls`.

    Attributes:
        journal: for what the books do not tell.
        books: for calls.
        found: what an earlier process of the server left.

    Raises:
        ConfigError: the directory is not this run's, or is in use.
        StorageError: it is damaged, or was further than its journal.
        OSError: a file cannot be read or written.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        with ExitStack() as undo:
            self.journal = Journal(out, config)
            undo.callback(self.journal.close)
            self.found = self.journal.recover()
            self.books = Books(out, self.found, self.journal.append_begun)
            undo.pop_all()

    def store(self, round_: int, update: StoredUpdate) -> None:
        """Take in an update; it may be acknowledged once `flush` returns."""
        self.journal.append_update(update)
        self.books.stored(round_, update)

    def checkpoint(self, point: Checkpoint) -> None:
        """Make a closed round's result durable, and tell of it; raises OSError."""
        self.journal.checkpoint(replace(point, marks=self.books.marks()))
        self.books.closed(point.metrics)

    def flush(self) -> None:
        """Make durable what was taken in, then tell of it; raises OSError."""
        self.journal.sync()
        self.books.write()

    def close(self) -> None:
        """Close the files and let another server use the directory."""
        self.books.close()
        self.journal.close()
