"""Durability: what the server acknowledged survives it.

    DIR/config.toml             the run that this directory belongs to
    DIR/server.lock             held by the server that is using it
    DIR/journal/checkpoint      the last closed round's result, replaced atomically
    DIR/journal/round-N.log     what happened since: partitions, cohorts, updates

One thread at a time may use a Journal; its calls block on the disk. What is appended is durable
after the next `sync`, so that one flush does for all who wait.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any, Final

import safetensors.numpy
from safetensors import SafetensorError

from common.config import RunConfig, load_config
from common.errors import ConfigError, ProtocolError, StorageError
from common.files import sealed, unsealed, write_atomically
from common.state import GlobalState
from server.attendance import Absence
from server.entries import Header
from server.evidence import check_not_further
from server.frame_log import FrameLog
from server.line_file import Mark
from server.members import give_partition
from server.recovered import Checkpoint, Recovered, StoredUpdate

_STATE: Final = "state"

log = logging.getLogger(__name__)


class Journal:
    """The log and the checkpoint of one run directory, claimed for this process.

    Raises:
        ConfigError: the directory cannot be used, another server is using it, or it holds
            another run.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        self._config = config
        self._run = config.run_id().hex()
        self._directory = out / "journal"
        self._partitions: dict[str, int] = {}
        self._changes: list[dict[str, Any]] = []
        self._log: FrameLog | None = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (out / "server.lock").open("a")
        except OSError as error:
            raise ConfigError(f"cannot use {out} for the run: {error.strerror}") from error
        try:
            self._changed = _claim(out, config, self._lock)
        except BaseException:
            self._lock.close()
            raise

    def recover(self) -> Recovered:
        """Read back what an earlier process of the server left, and make ready to append.

        Raises:
            StorageError: something that was acknowledged cannot be read back.
            ConfigError: more rounds are closed than the config has.
        """
        found = self._read_checkpoint()
        path = self._log_path(found.round)
        begun = found.checkpoint is not None
        check_not_further(self._directory.parent, self._config, found.round, checkpoint=begun)
        if path.exists():
            self._log, entries = FrameLog.open(path)
            try:
                if entries[0][0] != self._first(found.round):
                    raise StorageError(f"{path} belongs to another run or round")
                for entry, payload in entries[1:]:
                    found.apply(entry, payload)
            except (ProtocolError, ValueError) as error:
                raise StorageError(
                    f"{path} holds an entry unknown to this version: put a copy of "
                    f"{self._directory} back, or go on with the version that wrote it"
                ) from error
            self._drop_other_logs(path)
        else:
            self._start_log(found.round)
        if found.round > self._config.rounds:
            raise ConfigError(
                f"{self._directory.parent} has closed {found.round} rounds already: ask for "
                f"rounds={found.round}, or more to extend it"
            )
        self._partitions, self._changes = dict(found.partitions), found.changes
        self._note_changes(found)
        return found

    def append_partition(self, client: str, index: int) -> None:
        """Remember who holds a data partition."""
        self._append({"kind": "partition", "client": client, "index": index})
        give_partition(self._partitions, client, index)

    def append_open(self, draw: int, cohort: tuple[str, ...]) -> None:
        """Remember who is asked; updates that are in stay in."""
        self._append({"kind": "open", "draw": draw, "cohort": cohort})

    def append_update(self, update: StoredUpdate) -> None:
        """Remember an update; it may be acknowledged once `sync` returns."""
        entry = {
            "kind": "update",
            "client": update.client,
            "digest": update.digest.hex(),
            "sizes": update.sizes,
            "loss": update.report.loss,
            "bits": update.report.bits and astuple(update.report.bits),
            "classes": update.report.classes,
            "cells": update.report.cells.content.hex(),
            "message_bytes": update.message_bytes,
            "time": update.time,
            "seconds": update.seconds,
        }
        self._append(entry, update.payload)

    def updates(self) -> Mapping[str, StoredUpdate]:
        """The updates of the open round by name, read back from the disk.

        Raises:
            StorageError: they cannot be read back.
        """
        if self._log is None:
            raise StorageError("the journal is closed")
        found = Recovered()
        for entry, payload in self._log.read_back()[1:]:
            found.apply(entry, payload)
        return found.updates

    def append_missed(self, clients: tuple[str, ...]) -> None:
        """Remember who missed a deadline."""
        self._append({"kind": "missed", "clients": clients})

    def append_close(self) -> None:
        """Remember that the open round takes no more updates."""
        self._append({"kind": "close"})

    def sync(self) -> None:
        """Make everything that was appended durable."""
        if self._log is not None:
            self._log.sync()

    def append_begun(self, file: str) -> None:
        """Remember that one of the run's books was gone and is begun anew."""
        self._append({"kind": "begun", "file": file})
        self.sync()

    def checkpoint(self, point: Checkpoint) -> None:
        """Make a closed round's result durable and start the next round's log."""
        header = {
            "run": self._run,
            "round": point.state.round,
            "partitions": self._partitions,
            "members": point.members,
            "metrics": point.metrics,
            "changes": self._changes,
            "marks": point.marks,
            "absences": {name: [a.missed, a.round] for name, a in point.absences.items()},
        }
        arrays = {**point.arrays, _STATE: point.state.values}
        body = json.dumps(header).encode() + b"\n" + safetensors.numpy.save(arrays)
        write_atomically(self._directory / "checkpoint", sealed(body))
        self._start_log(point.state.round)

    def close(self) -> None:
        """Close the files and let another server use the directory."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._lock.close()

    def _note_changes(self, found: Recovered) -> None:
        """Remember that the run goes on with other operational keys, then go on with them."""
        if not self._changed:
            return
        entry = {"kind": "config", "changed": {k: [*pair] for k, pair in self._changed.items()}}
        self._append(entry)
        self.sync()
        found.apply(entry, b"")
        write_atomically(self._directory.parent / "config.toml", self._config.to_toml().encode())
        for key, (was, now) in self._changed.items():
            log.info("%s is %s from round %d on; it was %s", key, now, found.round, was)
        self._changed = {}

    def _append(self, entry: Mapping[str, Any], payload: bytes = b"") -> None:
        if self._log is None:
            raise StorageError("the journal is closed")
        self._log.append(entry, payload)

    def _start_log(self, round_: int) -> None:
        if self._log is not None:
            self._log.close()
        path = self._log_path(round_)
        self._log = FrameLog.create(path, self._first(round_))
        self._drop_other_logs(path)

    def _first(self, round_: int) -> dict[str, Any]:
        return {"kind": "log", "run": self._run, "round": round_}

    def _drop_other_logs(self, keep: Path) -> None:
        for path in self._directory.glob("round-*.log"):
            if path != keep:
                path.unlink()

    def _log_path(self, round_: int) -> Path:
        return self._directory / f"round-{round_:06d}.log"

    def _read_checkpoint(self) -> Recovered:
        path = self._directory / "checkpoint"
        if not path.exists():
            return Recovered()
        try:
            body = unsealed(path.read_bytes())
        except ValueError as error:
            raise StorageError(f"{path} is corrupt: {error}: put a copy of it back") from error
        try:
            line, _, tensors = body.partition(b"\n")
            header = Header.model_validate_json(line)
            arrays = safetensors.numpy.load(tensors)
            state = GlobalState(header.round, arrays.pop(_STATE))
            marks = {name: Mark(*mark) for name, mark in header.marks.items()}
            absences = {name: Absence(*numbers) for name, numbers in header.absences.items()}
            found = Recovered(
                Checkpoint(state, header.members, header.metrics, arrays, marks, dict(absences)),
                header.partitions,
                absences=absences,
                changes=header.changes,
                marks=marks,
            )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is not a checkpoint that this version reads") from error
        if header.run != self._run:
            raise StorageError(
                f"{path} belongs to another run, or to a version with other defaults: finish it "
                "with that version, or choose another --out"
            )
        return found


def taken_up(config: RunConfig, out: Path) -> RunConfig:
    """The config as it goes on in a directory, whatever run that holds; see `taking_up`."""
    held = out / "config.toml"
    return config.taking_up(load_config(held)) if held.exists() else config


def _claim(out: Path, config: RunConfig, lock: IO[str]) -> dict[str, tuple[Any, Any]]:
    """Take the directory's lock, and check or write whose run it is; see `changes_since`."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another server is using {out}: choose another --out") from None
    held = out / "config.toml"
    if not held.exists():
        write_atomically(held, config.to_toml().encode())
        return {}
    before = load_config(held)
    config.check_same_run(before, out)
    return config.changes_since(before)
