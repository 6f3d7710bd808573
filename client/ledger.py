"""The ledger: an append-only, hash-chained record of every release from private images.

One JSON object a line in DIR/ledger.jsonl; each carries the hash of the one before and its
own, and DIR/ledger.head the last hash. A line is on the disk before anything that it records
leaves the client, so a crash can make the ledger claim too much but never too little.

The chain reveals lines that were changed, moved or taken away. It is no signature: someone
who may write to the directory can forge it whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from common.accounting import compose, gaussian_epsilon
from common.errors import StorageError
from common.files import write_atomically
from common.timestamps import utc_now

GENESIS: Final = "0" * 64
_LATER: Final = {"classes", "scales"}
"""Fields that older ledgers do not have."""


@dataclass(frozen=True)
class Entry:
    """One release, or the use of the images without any mechanism.

    Attributes:
        mechanism: "moments", "mask-noise" or "none".
        run: id of the run that it was made for, hexadecimal.
        round: the round, where the mechanism releases in each.
        n: images, which is public.
        data: SHA-256 of the images, and of their labels where these are used; it stays in this
            file. None without a mechanism.
        encoder: name, digest, layers and pool, and the images' shape.
        features: F, length of each vector released; where labels are used it is one vector, of
            classes * (1 + 2 F).
        sensitivities: L2, of each vector released, if one record is replaced.
        sigmas: standard deviation a coordinate of the noise on each.
        epsilon: of this release alone; None without a mechanism.
        delta: likewise.
        release: SHA-256 of what was released, where it is kept.
        unit: whose data are protected.
        relation: which data sets are neighbours.
        time: of writing, ISO 8601.
        classes: of the run, all of which are released; 0 where labels are ignored.
        scales: of that release, which are public; None where labels are ignored.
    """

    mechanism: str
    run: str
    round: int | None
    n: int
    data: str | None
    encoder: dict[str, Any]
    features: int
    sensitivities: tuple[float, ...]
    sigmas: tuple[float, ...]
    epsilon: float | None
    delta: float | None
    release: str | None
    unit: str = "record"
    relation: str = "replace-one, n public"
    time: str = ""
    classes: int = 0
    scales: dict[str, Any] | None = None

    @property
    def mu(self) -> float:
        """Sensitivity over standard deviation of all that it releases; see `accounting`."""
        if self.mechanism == "none":
            return math.inf
        return compose(s / d for s, d in zip(self.sensitivities, self.sigmas, strict=True))


_ENTRY: Final = TypeAdapter(Entry)


def total_epsilon(entries: Sequence[Entry], delta: float) -> float:
    """Epsilon at delta of all releases together, for a record that was in each of them."""
    return gaussian_epsilon(compose(entry.mu for entry in entries), delta)


class Ledger:
    """The ledger of one client's state directory, which `ClientStore` locks.

    Args:
        directory: exists already.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "ledger.jsonl"
        self._head = directory / "ledger.head"

    def release_path(self, digest: str) -> Path:
        """Where a release with this SHA-256 is kept."""
        return self._directory / f"release-{digest[:16]}.pt"

    def entries(self) -> list[Entry]:
        """All entries, verified, oldest first.

        Raises:
            StorageError: an entry was changed, moved or taken away.
        """
        lines, _ = self._lines()
        out, previous = [], GENESIS
        for number, line in enumerate(lines, 1):
            try:
                raw = json.loads(line)
                stated, before = raw.pop("hash"), raw.pop("previous")
                entry = _read(raw)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise self._broken(f"line {number} is no entry") from error
            if before != previous or stated != _hash(raw, previous):
                raise self._broken(f"line {number} is not what was written there")
            out.append(entry)
            previous = stated
        head = self._head.read_text().strip() if self._head.exists() else GENESIS
        # A crash between line and head leaves the head one behind, and nothing released.
        if head not in (previous, json.loads(lines[-1])["previous"] if lines else GENESIS):
            raise self._broken("entries are missing at its end")
        recorded = {self.release_path(entry.release) for entry in out if entry.release}
        for path in self._directory.glob("release-*.pt"):
            if path not in recorded:
                raise self._broken(f"it does not know {path.name}")
        return out

    def append(self, entry: Entry) -> None:
        """Add an entry and wait until it is on the disk.

        Raises:
            StorageError: the ledger so far does not verify, or cannot be written.
        """
        self.entries()
        lines, complete = self._lines()
        previous = json.loads(lines[-1])["hash"] if lines else GENESIS
        raw = {**asdict(entry), "time": entry.time or utc_now("seconds")}
        mine = _hash(raw, previous)
        line = json.dumps({**raw, "previous": previous, "hash": mine}, sort_keys=True)
        try:
            with self.path.open("ab") as file:
                # What is left of a line that a crash cut short was never acted on.
                file.truncate(complete)
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            write_atomically(self._head, mine.encode() + b"\n")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def _lines(self) -> tuple[list[bytes], int]:
        """Complete lines, and how many bytes they take."""
        content = self.path.read_bytes() if self.path.exists() else b""
        complete = content.rfind(b"\n") + 1
        return content[:complete].splitlines(), complete

    def _broken(self, how: str) -> StorageError:
        return StorageError(
            f"{self.path} was tampered with ({how}): what was released from these images is no "
            "longer known, and no guarantee can be given"
        )


def _hash(raw: dict[str, Any], previous: str) -> str:
    content = previous + json.dumps(raw, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _read(raw: dict[str, Any]) -> Entry:
    """The entry of a line; raises KeyError and ValueError."""
    names = {f.name for f in fields(Entry)}
    if wrong := (names - _LATER - raw.keys()) | (raw.keys() - names):
        raise KeyError(*wrong)
    entry = _ENTRY.validate_json(json.dumps(raw), strict=True)
    # NaN compares as false.
    if not all(value > 0 for value in entry.sigmas + entry.sensitivities) or not entry.mu > 0:
        raise ValueError("no mechanism has these figures")
    return entry
