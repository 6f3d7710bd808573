"""What a client keeps in --state: its name, its trainer, and the update it last made.

Keeping the update itself makes submitting idempotent: a client killed between training and
the acknowledgement sends the same bytes again, not another sample of the same mask.

Each file carries a digest of its content. One that does not match is refused: a changed name would
take another place in the run, and a changed trainer would train on from values of nobody's.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import secrets
import socket
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.cells import CellTable
from common.errors import ProtocolError, StorageError
from common.files import sealed, unsealed, write_atomically
from common.report import Report
from common.theory import MaskBits

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Byte = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True)
class MadeUpdate:
    """An update that was made and may not have been acknowledged.

    Attributes:
        round: the round it belongs to.
        rank: the place in the cohort that it was encoded for.
        cohort_size: clients in that cohort.
        payloads: one per segment of the run's layout.
        report: figures that travel with it.
        seconds: of training, for this client's own log.
    """

    round: int
    rank: int
    cohort_size: int
    payloads: tuple[bytes, ...]
    report: Report
    seconds: float


class _Kept(BaseModel):
    """What `ClientStore.save` writes, by the same names."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    run_id: str
    trainer: dict[str, Any]
    assignment: Annotated[list[_Count], Field(min_length=3, max_length=3)]
    payloads: list[torch.Tensor]
    loss: float | None
    bits: tuple[float, float] | None
    classes: list[_Count]
    cells: list[_Byte]
    seconds: float

    @field_validator("assignment")
    @classmethod
    def _check_place(cls, assignment: list[int]) -> list[int]:
        _, rank, cohort_size = assignment
        if rank >= cohort_size:
            raise ValueError(f"there is no rank {rank} of {cohort_size}")
        return assignment


class ClientStore:
    """A directory, or nothing: then all is forgotten when the process ends."""

    def __init__(self, directory: Path | None, name: str | None) -> None:
        self._directory = directory
        self._name = name
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                self._lock = (directory / "lock").open("w")
            except OSError as error:
                raise StorageError(f"cannot use --state {directory}: {error.strerror}") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._lock.close()
                raise StorageError(f"another client is using --state {directory}") from error

    @property
    def directory(self) -> Path | None:
        """Where everything is kept, if anywhere."""
        return self._directory

    def close(self) -> None:
        """Let another process use the directory."""
        if self._directory is not None:
            self._lock.close()

    def identity(self) -> tuple[str, bytes]:
        """This client's name and instance, kept so that it can take its place again at once.

        The name is the one given, else the one kept here, else a new one from the host name.

        Raises:
            StorageError: what was kept is corrupt.
        """
        name, instance = self._name, secrets.token_bytes(16)
        content = self._read("client.json")
        if content is not None:
            kept_name, kept_instance = self._kept_identity(content)
            if name in (None, kept_name):
                name, instance = kept_name, kept_instance
        name = name or f"{socket.gethostname()[:48]}-{secrets.token_hex(3)}"
        kept = {"name": name, "instance": instance.hex()}
        self._write("client.json", json.dumps({**kept, "digest": _digest(kept)}).encode())
        return name, instance

    def _kept_identity(self, content: bytes) -> tuple[str, bytes]:
        try:
            kept = json.loads(content)
            # Earlier versions wrote no digest; where its key is damaged, there is still a third.
            good = kept.keys() == {"name", "instance"} or kept.pop("digest") == _digest(kept)
            name, instance = str(kept["name"]), bytes.fromhex(kept["instance"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise StorageError(
                f"{self._directory}/client.json is damaged: put a copy of it back, or delete it; "
                "this client then has another name and place in the run, unless --name says which"
            )
        return name, instance

    def save(self, run_id: bytes, trainer: dict[str, Any], update: MadeUpdate) -> None:
        """Keep the trainer's state and its update together, whole or not at all."""
        if self._directory is None:
            return
        buffer = io.BytesIO()
        report = update.report
        torch.save(
            {
                "run_id": run_id.hex(),
                "trainer": trainer,
                "assignment": [update.round, update.rank, update.cohort_size],
                # Tensors, because torch's safe loader reads no bytes.
                "payloads": [_as_tensor(p) for p in update.payloads],
                "loss": report.loss,
                "bits": report.bits and astuple(report.bits),
                "classes": list(report.classes),
                "cells": list(report.cells.content),
                "seconds": update.seconds,
            },
            buffer,
        )
        self._write("trainer.pt", sealed(buffer.getvalue()))

    def load(self, run_id: bytes) -> tuple[dict[str, Any], MadeUpdate] | None:
        """What `save` kept for this run; None if there is nothing, or it is another run's.

        Raises:
            StorageError: the file is corrupt.
        """
        content = self._read("trainer.pt")
        if content is None:
            return None
        try:
            kept = _Kept.model_validate(_unpickled(unsealed(content)))
            if kept.run_id != run_id.hex():
                return None
            round_, rank, cohort_size = kept.assignment
            bits, cells = kept.bits, CellTable.read(bytes(kept.cells))
            update = MadeUpdate(
                round_,
                rank,
                cohort_size,
                tuple(payload.numpy().tobytes() for payload in kept.payloads),
                Report(kept.loss, bits and MaskBits(*bits), tuple(kept.classes), cells),
                kept.seconds,
            )
        except (ValueError, RuntimeError, ProtocolError) as error:
            raise StorageError(
                f"{self._directory}/trainer.pt is damaged, or of another version: put a copy of it "
                "back, or delete it; this client then goes on with fresh optimisers and moving "
                "averages, and trains again what was not acknowledged"
            ) from error
        return kept.trainer, update

    def _read(self, name: str) -> bytes | None:
        if self._directory is None:
            return None
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self._directory / name}: {error.strerror}") from error

    def _write(self, name: str, content: bytes) -> None:
        if self._directory is None:
            return
        try:
            write_atomically(self._directory / name, content)
        except OSError as error:
            path = self._directory / name
            raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _unpickled(content: bytes) -> Any:
    """What `torch.save` made of plain values and tensors; raises ValueError."""
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        # Of other bytes it raises whatever the first thing is that does not fit.
        raise ValueError("torch cannot read it") from error


def _digest(kept: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _as_tensor(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy())
