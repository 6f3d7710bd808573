"""What the journal keeps of a run, and what it gives back: updates, checkpoints, an open round."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.cells import CellTable
from common.errors import PayloadError, StorageError
from common.report import Report
from common.state import GlobalState
from common.theory import MaskBits
from server.attendance import Absence, missed_again
from server.entries import (
    ENTRY,
    BegunEntry,
    CloseEntry,
    ConfigEntry,
    MissedEntry,
    OpenEntry,
    PartitionEntry,
    UpdateEntry,
)
from server.line_file import Mark
from server.members import give_partition


@dataclass(frozen=True)
class StoredUpdate:
    """One acknowledged update.

    Attributes:
        client: name.
        digest: SHA-256 of the payload.
        sizes: bytes of each segment's payload, in order.
        report: what the client says about it.
        payload: the segments' payloads, concatenated.
        message_bytes: of the messages that it came in.
        time: of storing it, ISO 8601 in UTC; empty in logs of versions that did not note it.
        seconds: from the opening of its attempt until it was here whole.
    """

    client: str
    digest: bytes
    sizes: tuple[int, ...]
    report: Report
    payload: bytes
    message_bytes: int = 0
    time: str = ""
    seconds: float = 0.0

    def segments(self) -> list[bytes]:
        """The payload of each segment."""
        parts, start = [], 0
        for size in self.sizes:
            parts.append(self.payload[start : start + size])
            start += size
        return parts


@dataclass(frozen=True)
class Checkpoint:
    """Everything that closing a round left behind.

    Attributes:
        state: what the next round starts from.
        members: names that were live, for the server to await after a restart.
        metrics: the closed round's line of metrics.
        arrays: what the downlink and the average need besides the state.
        marks: what of the run's books was on the disk, by file name.
        absences: who missed the last deadline, by name.
    """

    state: GlobalState
    members: tuple[str, ...]
    metrics: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    marks: Mapping[str, Mark] = field(default_factory=dict)
    absences: Mapping[str, Absence] = field(default_factory=dict)


@dataclass
class Recovered:
    """What an earlier process of the server left in the directory.

    Attributes:
        checkpoint: None before the first round was closed.
        partitions: data partition by client name.
        cohort: of the open round, by rank; empty if none was open.
        draw: how often others were asked in place of some of it.
        updates: acknowledged in the open round, by name.
        closing: whether the open round had been closed to further updates.
        absences: who missed deadlines, by name.
        changes: of operational keys, at restarts: the round, and by key what it was and became.
        marks: what the run's books begin with at least, by file name.
    """

    checkpoint: Checkpoint | None = None
    partitions: dict[str, int] = field(default_factory=dict)
    cohort: tuple[str, ...] = ()
    draw: int = 0
    updates: dict[str, StoredUpdate] = field(default_factory=dict)
    closing: bool = False
    absences: dict[str, Absence] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """The round that is open or next."""
        return self.checkpoint.state.round if self.checkpoint else 0

    def apply(self, raw: Mapping[str, Any], payload: bytes) -> None:
        """Fold in one log entry, in the order of writing.

        Raises:
            ValueError, ProtocolError: no server writes such an entry, or not after the others.
        """
        entry = ENTRY.validate_python(raw)
        match entry:
            case PartitionEntry():
                give_partition(self.partitions, entry.client, entry.index)
            case OpenEntry():
                _require(len(set(entry.cohort)) == len(entry.cohort))
                _require(self.updates.keys() <= {*entry.cohort})
                _require(not entry.draw or len(entry.cohort) == len(self.cohort))
                self.draw, self.cohort = entry.draw, entry.cohort
            case UpdateEntry():
                _require(entry.client in self.cohort and entry.client not in self.updates)
                update = _stored(entry, payload)
                self.updates[update.client] = update
            case MissedEntry():
                _require({*entry.clients} <= {*self.cohort} - self.updates.keys())
                missed_again(self.absences, self.round, entry.clients)
            case CloseEntry():
                self.closing = True
            case BegunEntry():
                self.marks[entry.file] = Mark()
            case ConfigEntry():
                changed = {key: [*pair] for key, pair in entry.changed.items()}
                self.changes.append({"round": self.round, "changed": changed})


@contextmanager
def fitting(out: Path) -> Iterator[None]:
    """For a block that takes up what was recovered; raises StorageError if that is another's."""
    try:
        yield
    except (PayloadError, LookupError, ValueError, TypeError) as error:
        raise StorageError(
            f"{out}/journal holds what does not fit this run: put a copy of it back"
        ) from error


def _stored(entry: UpdateEntry, payload: bytes) -> StoredUpdate:
    digest = bytes.fromhex(entry.digest)
    _require(sum(entry.sizes) == len(payload) and hashlib.sha256(payload).digest() == digest)
    bits = MaskBits(*entry.bits) if entry.bits else None
    cells = CellTable.read(bytes.fromhex(entry.cells))
    report = Report(entry.loss, bits, entry.classes, cells)
    came = entry.message_bytes, entry.time, entry.seconds
    return StoredUpdate(entry.client, digest, entry.sizes, report, payload, *came)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("the journal contradicts itself")


def like(known: NDArray[Any], found: NDArray[Any]) -> NDArray[Any]:
    """An array that was recovered, if it has the shape and the type of a known one.

    Raises:
        ValueError: it has others.
    """
    if (found.shape, found.dtype) != (known.shape, known.dtype):
        raise ValueError(f"{found.shape} {found.dtype}, not {known.shape} {known.dtype}")
    return found
