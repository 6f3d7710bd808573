"""Durability: what the server acknowledged survives it.

    DIR/config.toml             the run that this directory belongs to
    DIR/server.lock             held by the server that is using it
    DIR/journal/checkpoint      the last closed round's result, replaced atomically
    DIR/journal/round-N.log     what happened since: cohorts, updates, partitions

A log is a sequence of frames: magic, length, CRC32 of the body, CRC32 of those twelve bytes;
then the body, a line of JSON and a payload. Every append is on the disk before it returns. A
frame that the end of the file cuts short was never acknowledged and is cut off; damage
before a good frame is not repaired but refused.

One thread at a time may use a Journal; the calls block on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast
from zlib import crc32

import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from common.config import RunConfig, load_config
from common.errors import ConfigError, StorageError
from common.state import GlobalState

MAGIC: Final = b"PRJ1"
_HEADER: Final = struct.Struct("<4sII")
_HEADER_BYTES: Final = _HEADER.size + 4
_VALUES: Final = "state"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredUpdate:
    """One acknowledged update.

    Attributes:
        client: name.
        digest: SHA-256 of the payload.
        sizes: bytes of each segment's payload, in order.
        loss: what the client reported; None if nothing finite.
        payload: the segments' payloads, concatenated.
    """

    client: str
    digest: bytes
    sizes: tuple[int, ...]
    loss: float | None
    payload: bytes

    def segments(self) -> list[bytes]:
        """The payload of each segment."""
        view, parts = memoryview(self.payload), []
        for size in self.sizes:
            parts.append(bytes(view[:size]))
            view = view[size:]
        return parts


@dataclass(frozen=True)
class Checkpoint:
    """Everything that closing a round left behind.

    Attributes:
        state: what the next round starts from.
        members: names that were live, for the server to await after a restart.
        metrics: the closed round's line of metrics.
        broadcast: arrays of the downlink's own state.
    """

    state: GlobalState
    members: tuple[str, ...]
    metrics: Mapping[str, Any]
    broadcast: Mapping[str, NDArray[Any]]


@dataclass
class Recovered:
    """What an earlier life of the server left in the directory.

    Attributes:
        checkpoint: None before the first round was closed.
        partitions: data partition by client name.
        attempt: of the round after the checkpoint.
        cohort: of the open attempt; empty if none was open.
        updates: acknowledged in the open attempt, by name.
        closing: whether the open attempt had been closed to further updates.
    """

    checkpoint: Checkpoint | None = None
    partitions: dict[str, int] = field(default_factory=dict)
    attempt: int = 0
    cohort: tuple[str, ...] = ()
    updates: dict[str, StoredUpdate] = field(default_factory=dict)
    closing: bool = False

    def apply(self, entry: Mapping[str, Any], payload: bytes) -> None:
        """Fold in one log entry."""
        kind = entry["kind"]
        if kind == "partition":
            self.partitions[entry["client"]] = entry["index"]
        elif kind == "open":
            self.attempt, self.cohort = entry["attempt"], tuple(entry["cohort"])
        elif kind == "update":
            digest, sizes = bytes.fromhex(entry["digest"]), tuple(entry["sizes"])
            update = StoredUpdate(entry["client"], digest, sizes, entry["loss"], payload)
            self.updates[update.client] = update
        elif kind == "discard":
            self.attempt, self.cohort = entry["attempt"] + 1, ()
            self.updates.clear()
        elif kind == "close":
            self.closing = True
        else:
            raise KeyError(kind)


class Journal:
    """The run directory's log and checkpoint; made by `open_journal`."""

    def __init__(self, directory: Path, run_id: bytes, lock: IO[str]) -> None:
        self._directory = directory
        self._run_id = run_id
        self._lock = lock
        self._partitions: dict[str, int] = {}
        self._file: IO[bytes] | None = None

    def append_partition(self, client: str, index: int) -> None:
        """Remember a data partition for the whole run."""
        self._append({"kind": "partition", "client": client, "index": index})
        self._partitions[client] = index

    def append_open(self, attempt: int, cohort: tuple[str, ...]) -> None:
        """Remember who was drawn."""
        self._append({"kind": "open", "attempt": attempt, "cohort": cohort})

    def append_update(self, update: StoredUpdate) -> None:
        """Remember an update; it may be acknowledged once this returns."""
        entry = {
            "kind": "update",
            "client": update.client,
            "digest": update.digest.hex(),
            "sizes": update.sizes,
            "loss": update.loss,
        }
        self._append(entry, update.payload)

    def append_discard(self, attempt: int) -> None:
        """Forget the updates of an attempt."""
        self._append({"kind": "discard", "attempt": attempt})

    def append_close(self) -> None:
        """Remember that the open attempt takes no more updates."""
        self._append({"kind": "close"})

    def checkpoint(self, point: Checkpoint) -> None:
        """Make a closed round's result durable and start the next round's log."""
        header = {
            "run": self._run_id.hex(),
            "round": point.state.round,
            "partitions": self._partitions,
            "members": point.members,
            "metrics": point.metrics,
        }
        arrays = {f"broadcast.{name}": array for name, array in point.broadcast.items()}
        arrays[_VALUES] = point.state.values
        body = safetensors.numpy.save(arrays, {"header": json.dumps(header)})
        write_atomically(self._directory / "checkpoint", hashlib.sha256(body).digest() + body)
        self._start_log(point.state.round)

    def close(self) -> None:
        """Close the files and let another server use the directory."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def recover(self) -> Recovered:
        """Read back what is there, and make ready to append."""
        found = self._read_checkpoint()
        round_ = found.checkpoint.state.round if found.checkpoint else 0
        path = self._log_path(round_)
        if not path.exists():
            self._partitions = found.partitions
            self._start_log(round_)
            return found
        data = path.read_bytes()
        end = 0
        try:
            for start, body in _frames(path, data):
                line, _, payload = body.partition(b"\n")
                entry = json.loads(line)
                if start == 0:
                    self._check_first(path, entry, round_)
                else:
                    found.apply(entry, payload)
                end = start + _HEADER_BYTES + len(body)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} holds an entry that this version cannot read") from error
        self._partitions = found.partitions
        if end == 0:
            self._start_log(round_)
            return found
        self._file = path.open("r+b")
        if end < len(data):
            log.warning(
                "%s: cut off %d bytes of an entry that was never acknowledged",
                path.name,
                len(data) - end,
            )
            self._file.truncate(end)
            os.fsync(self._file.fileno())
        self._file.seek(end)
        self._drop_other_logs(path)
        return found

    def _append(self, entry: Mapping[str, Any], payload: bytes = b"") -> None:
        if self._file is None:
            raise StorageError("the journal is closed")
        self._file.write(_frame(json.dumps(entry).encode() + b"\n" + payload))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _start_log(self, round_: int) -> None:
        if self._file is not None:
            self._file.close()
        path = self._log_path(round_)
        first = {"kind": "log", "run": self._run_id.hex(), "round": round_}
        write_atomically(path, _frame(json.dumps(first).encode() + b"\n"))
        self._file = path.open("r+b")
        self._file.seek(0, os.SEEK_END)
        self._drop_other_logs(path)

    def _drop_other_logs(self, keep: Path) -> None:
        for path in self._directory.glob("round-*.log"):
            if path != keep:
                path.unlink()

    def _log_path(self, round_: int) -> Path:
        return self._directory / f"round-{round_:06d}.log"

    def _check_first(self, path: Path, entry: Mapping[str, Any], round_: int) -> None:
        expected = {"kind": "log", "run": self._run_id.hex(), "round": round_}
        if dict(entry) != expected:
            raise StorageError(f"{path} belongs to another run or round")

    def _read_checkpoint(self) -> Recovered:
        path = self._directory / "checkpoint"
        if not path.exists():
            return Recovered()
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise StorageError(f"{path} is corrupt: its digest does not match its content")
        try:
            arrays = safetensors.numpy.load(data[32:])
            length = int.from_bytes(data[32:40], "little")
            metadata = json.loads(data[40 : 40 + length])["__metadata__"]
            header = json.loads(metadata["header"])
            state = GlobalState(header["round"], arrays.pop(_VALUES))
            broadcast = {name.removeprefix("broadcast."): a for name, a in arrays.items()}
            members = tuple(header["members"])
            point = Checkpoint(state, members, header["metrics"], broadcast)
            run, partitions = header["run"], header["partitions"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is not a checkpoint that this version reads") from error
        if run != self._run_id.hex():
            raise StorageError(f"{path} belongs to another run")
        return Recovered(point, partitions)


def open_journal(out: Path, config: RunConfig) -> Journal:
    """Claim a run directory for this process and this run.

    Raises:
        ConfigError: the directory cannot be used, another server is using it, or it holds
            another run.
    """
    directory = out / "journal"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (out / "server.lock").open("a")
    except OSError as error:
        raise ConfigError(f"cannot use {out} for the run: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = out / "config.toml"
        if not held.exists():
            write_atomically(held, config.to_toml().encode())
        elif load_config(held).run_id() != config.run_id():
            raise ConfigError(f"{out} holds another run: choose another --out, or its config.toml")
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"another server is using {out}: choose another --out") from None
    except BaseException:
        lock.close()
        raise
    return Journal(directory, config.run_id(), lock)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that it is whole, old or new, whatever happens; durable on return."""
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _frame(body: bytes) -> bytes:
    header = _HEADER.pack(MAGIC, len(body), crc32(body))
    return header + crc32(header).to_bytes(4, "little") + body


def _frames(path: Path, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, body) of each good frame, up to a torn end.

    Raises:
        StorageError: a good frame follows a bad one.
    """
    offset = 0
    while offset < len(data):
        body = _frame_at(data, offset)
        if body is None:
            later = (match.start() for match in re.finditer(re.escape(MAGIC), data[offset + 1 :]))
            if any(_frame_at(data, offset + 1 + start) is not None for start in later):
                raise StorageError(f"{path} is damaged at byte {offset}: restore it from a copy")
            return
        yield offset, body
        offset += _HEADER_BYTES + len(body)


def _frame_at(data: bytes, offset: int) -> bytes | None:
    """The body of the frame at an offset; None if there is no whole and good one."""
    header = data[offset : offset + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES or crc32(header[:-4]) != int.from_bytes(header[-4:], "little"):
        return None
    magic, length, checksum = cast(tuple[bytes, int, int], _HEADER.unpack(header[:-4]))
    start = offset + _HEADER_BYTES
    body = data[start : start + length]
    good = magic == MAGIC and len(body) == length and crc32(body) == checksum
    return body if good else None
