"""The books of a run, metrics.jsonl and comm.jsonl, which tell the truth whatever is killed when.

    metrics.jsonl    one line a closed round
    comm.jsonl       one line a call and direction; polls and heartbeats one a round

Exactly once there, since the journal knows them: each closed round, and each acknowledged update
with its bytes. The line of an update is written once it is in the journal on the disk, and says
that it was acknowledged. Whatever a crash took away is written again from there.

What other calls moved is known to the process alone that answered them: a call is counted when it
ends, polls and heartbeats when a round ends or the server stops. A server that is killed takes with
it what it had not written yet, so of these there is at least what stands there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from common.errors import StorageError
from common.theory import figures
from common.timestamps import utc_now
from server.line_file import LineFile, Mark
from server.recovered import Checkpoint, Recovered, StoredUpdate

METRICS: Final = "metrics.jsonl"
COMM: Final = "comm.jsonl"

log = logging.getLogger(__name__)


class Books:
    """Both files of one run directory, made to say what the journal says.

    Args:
        out: the run directory.
        found: what the journal says.
        begun: makes the journal remember that a file that was gone was begun anew, by its name.

    Raises:
        StorageError: a file was changed since, or tells of more than the journal.
        OSError: one cannot be read or written.
    """

    def __init__(self, out: Path, found: Recovered, begun: Callable[[str], None]) -> None:
        self._unwritten: list[dict[str, Any]] = []
        for name, mark in found.marks.items():
            path = out / name
            if mark.size and not path.exists():
                log.warning("%s is gone, and what it said of earlier rounds: begun anew", path)
                begun(name)
                found.marks[name] = Mark()
        with ExitStack() as undo:
            self._metrics, closed = LineFile.open(out / METRICS, found.marks.get(METRICS, Mark()))
            undo.callback(self._metrics.close)
            self._comm, calls = LineFile.open(out / COMM, found.marks.get(COMM, Mark()))
            undo.callback(self._comm.close)
            if found.checkpoint is not None:
                self._restore_round(found.checkpoint, closed)
            self._restore_updates(found, calls)
            undo.pop_all()

    def stored(self, round_: int, update: StoredUpdate) -> None:
        """Write of an update as soon as the journal has it, with the next `write`."""
        self._unwritten.append(_line(round_, update))

    def write(self) -> None:
        """Write of all updates that were stored; the journal has them. Raises OSError."""
        if self._unwritten:
            self._comm.append(*self._unwritten)
            self._unwritten.clear()

    def calls(self, *lines: Mapping[str, Any]) -> None:
        """Write of other calls; raises OSError."""
        now = utc_now()
        self._comm.append(*({**line, "time": now} for line in lines))

    def closed(self, metrics: Mapping[str, Any]) -> None:
        """Write of a round whose checkpoint is on the disk; raises OSError."""
        self._metrics.append(metrics)

    def marks(self) -> dict[str, Mark]:
        """Put everything on the disk, for a checkpoint to take the place of the log."""
        return {METRICS: self._metrics.mark(), COMM: self._comm.mark()}

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._comm.close()

    def _restore_round(self, point: Checkpoint, closed: list[dict[str, Any]]) -> None:
        """The last closed round's line, which the checkpoint has too."""
        if not closed or closed[-1]["round"] < point.metrics["round"]:
            self._metrics.append(point.metrics)
        elif closed[-1] != point.metrics:
            raise StorageError(
                f"{self._metrics.path} tells of another run, or was changed: put a copy of it "
                "back, or move it away and do without what it said of earlier rounds"
            )

    def _restore_updates(self, found: Recovered, calls: list[dict[str, Any]]) -> None:
        """The updates of the open round, all of which the log has."""
        there = {
            str(line.get("client"))
            for line in calls
            if line["round"] == found.round and "acknowledged" in line
        }
        if unknown := there - found.updates.keys():
            client = min(unknown)
            raise StorageError(
                f"{self._comm.path} tells of an update of {client} to round {found.round} that the "
                "journal does not know: put a copy of the whole run directory back"
            )
        for client, update in found.updates.items():
            # Versions that did not note the time wrote the line when the call ended.
            if client not in there and update.time:
                self.stored(found.round, update)
        self.write()


def _line(round_: int, update: StoredUpdate) -> dict[str, Any]:
    bits = update.report.bits
    return {
        "round": round_,
        "client": update.client,
        "direction": "up",
        "rpc": "SubmitUpdate",
        "payload_bytes": len(update.payload),
        "message_bytes": update.message_bytes,
        "calls": 1,
        **(figures(bits) if bits else {}),
        "acknowledged": True,
        "time": update.time,
    }
