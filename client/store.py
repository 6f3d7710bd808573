"""What a client keeps in --state: its name, its trainer, and the update it last made.

Keeping the update itself makes submitting idempotent: a client killed between training and
the acknowledgement sends the same bytes again, not another sample of the same mask.
"""

from __future__ import annotations

import io
import json
import pickle
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.transport import Report
from common.errors import StorageError


@dataclass(frozen=True)
class MadeUpdate:
    """An update that was made and may not have been acknowledged.

    Attributes:
        round: the round it belongs to.
        rank: the place in the cohort that it was encoded for.
        cohort_size: clients in that cohort.
        payloads: one per segment of the run's layout.
        report: figures that travel with it.
    """

    round: int
    rank: int
    cohort_size: int
    payloads: tuple[bytes, ...]
    report: Report


class ClientStore:
    """A directory, or nothing: then all is forgotten when the process ends."""

    def __init__(self, directory: Path | None, name: str | None) -> None:
        self._directory = directory
        self._name = name
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"cannot use --state {directory}: {error.strerror}") from error

    def client_name(self) -> str:
        """The name given, else the one kept here, else a new one from the host name."""
        kept = self._read("client.json")
        if self._name is None and kept is not None:
            self._name = str(json.loads(kept)["name"])
        if self._name is None:
            self._name = f"{socket.gethostname()[:48]}-{secrets.token_hex(3)}"
        self._write("client.json", json.dumps({"name": self._name}).encode())
        return self._name

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
                "report": [report.examples, report.loss, report.seconds],
            },
            buffer,
        )
        self._write("trainer.pt", buffer.getvalue())

    def load(self, run_id: bytes) -> tuple[dict[str, Any], MadeUpdate] | None:
        """What `save` kept for this run; None if there is nothing, or it is another run's.

        Raises:
            StorageError: the file is corrupt.
        """
        content = self._read("trainer.pt")
        if content is None:
            return None
        try:
            saved = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            if saved["run_id"] != run_id.hex():
                return None
            round_, rank, cohort_size = saved["assignment"]
            examples, loss, seconds = saved["report"]
            update = MadeUpdate(
                round_,
                rank,
                cohort_size,
                tuple(payload.numpy().tobytes() for payload in saved["payloads"]),
                Report(examples, loss, seconds),
            )
            return saved["trainer"], update
        except (
            RuntimeError,
            KeyError,
            TypeError,
            ValueError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            raise StorageError(
                f"{self._directory}/trainer.pt is corrupt; delete it to start this client afresh"
            ) from error

    def _read(self, name: str) -> bytes | None:
        if self._directory is None or not (self._directory / name).exists():
            return None
        return (self._directory / name).read_bytes()

    def _write(self, name: str, content: bytes) -> None:
        if self._directory is None:
            return
        partial = self._directory / (name + ".tmp")
        partial.write_bytes(content)
        partial.replace(self._directory / name)


def _as_tensor(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy())
