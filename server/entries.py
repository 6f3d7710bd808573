"""The words of the journal, checked as they are read.

Digests and checksums catch accidents. These models catch the rest, which another version or a hand
may have written, so that nothing of it goes further than the reader.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from server.members import NAME_LENGTH

Count = Annotated[int, Field(ge=0, lt=2**63)]
Client = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hexadecimal = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


class _Word(BaseModel):
    # JSON has lists where these have tuples, so lists are taken too; numbers in quotes are not.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PartitionEntry(_Word):
    """A client got a data partition."""

    kind: Literal["partition"]
    client: Client
    index: Annotated[Count, Field(strict=True)]


class OpenEntry(_Word):
    """A cohort was drawn, or others were given places in it."""

    kind: Literal["open"]
    draw: Annotated[Count, Field(strict=True)]
    cohort: Annotated[tuple[Client, ...], Field(min_length=1)]


class UpdateEntry(_Word):
    """An update was stored; its payload follows. See `StoredUpdate` and `Report`."""

    kind: Literal["update"]
    client: Client
    digest: Digest
    sizes: tuple[Count, ...]
    loss: float | None
    bits: tuple[float, float] | None = None
    classes: tuple[Count, ...] = ()
    cells: Hexadecimal = ""
    message_bytes: Count = 0
    time: str = ""
    seconds: Annotated[float, Field(ge=0)] = 0.0


class MissedEntry(_Word):
    """A deadline passed without the updates of some."""

    kind: Literal["missed"]
    clients: Annotated[tuple[Client, ...], Field(min_length=1)]


class CloseEntry(_Word):
    """The open round takes no more updates."""

    kind: Literal["close"]


class BegunEntry(_Word):
    """One of the run's books was gone and was begun anew."""

    kind: Literal["begun"]
    file: Literal["metrics.jsonl", "comm.jsonl"]


class ConfigEntry(_Word):
    """Operational keys were changed at a restart: what each was, and what it became."""

    kind: Literal["config"]
    changed: dict[str, tuple[Any, Any]]


Entry = Annotated[
    PartitionEntry | OpenEntry | UpdateEntry | MissedEntry | CloseEntry | BegunEntry | ConfigEntry,
    Field(discriminator="kind"),
]
ENTRY: Final[TypeAdapter[Entry]] = TypeAdapter(Entry)


class Header(_Word):
    """The checkpoint's line of JSON; the tensors follow. See `Checkpoint`."""

    run: Digest
    round: Annotated[Count, Field(strict=True, ge=1)]
    partitions: dict[Client, Count]
    members: tuple[Client, ...]
    metrics: dict[str, Any]
    changes: list[dict[str, Any]] = []
    marks: dict[str, tuple[Count, Digest]] = {}
    absences: dict[Client, tuple[Annotated[Count, Field(ge=1)], Count]] = {}

    @model_validator(mode="after")
    def _check_metrics(self) -> Header:
        if self.metrics.get("round") != self.round - 1:
            raise ValueError("the metrics are of another round")
        _ROWS.validate_python(self.metrics.get("updates", {}))
        return self


_ROWS: Final = TypeAdapter(dict[Client, dict[str, float | None]])
"""The figures of a round's updates, by client."""
