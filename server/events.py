"""The words of the round state machine: what it asks for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.members import Parted, PartitionGiven


class Phase(StrEnum):
    """Where a round stands; see `rounds`."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSING = "closing"
    FINISHED = "finished"


@dataclass(frozen=True)
class Opened:
    """A cohort was drawn: remember it, and get ready to fold its updates."""

    round: int
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Missed:
    """A deadline passed without the updates of some: remember whose."""

    round: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Replaced:
    """Below a quorum, others were given places in the cohort: remember it.

    Attributes:
        round: that is open.
        draw: how often this happened in this round.
        cohort: as it is now, by rank; what is folded stays so.
        others: who got the place, by whose it was.
    """

    round: int
    draw: int
    cohort: tuple[str, ...]
    others: Mapping[str, str]


@dataclass(frozen=True)
class Closing:
    """No more updates: aggregate those of `clients`, make the result durable, say so."""

    round: int
    clients: tuple[str, ...]


Effect = Opened | Missed | Replaced | Closing | PartitionGiven | Parted
Effects = tuple[Effect, ...]


@dataclass(frozen=True)
class Assignment:
    """Train on the state of `round` and submit within `seconds_left`."""

    round: int
    rank: int
    cohort_size: int
    seconds_left: float


@dataclass(frozen=True)
class Wait:
    """Nothing to do for this client, and why, in one line."""

    reason: str
    live: int
    needed: int


@dataclass(frozen=True)
class Finished:
    """The run is over; `round` rounds were closed."""

    round: int


@dataclass(frozen=True)
class Ticket:
    """The right to store one update: one per (round, client), the newest counts."""

    serial: int
    name: str
    round: int
    rank: int
    digest: bytes


class Claimed(StrEnum):
    """Why a claim needs no upload."""

    DUPLICATE = "this very update is in"
    STORING = "this very update is being stored by another call"


@dataclass(frozen=True)
class Interrupted:
    """A round that an earlier process of the server left open.

    Attributes:
        cohort: the names that are asked, by rank.
        submitted: digest of each update that was acknowledged, by name.
        closing: whether the round had been closed to further updates.
        draw: how often others were asked in place of some.
    """

    cohort: tuple[str, ...]
    submitted: Mapping[str, bytes]
    closing: bool
    draw: int = 0
