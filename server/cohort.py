"""One attempt at a round: who was drawn, and how far each one's update has come. Pure.

No call but `submitted` looks at every name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from server.events import Ticket


class Stage(StrEnum):
    """How far an update has come."""

    UPLOADING = "uploading"
    STORING = "storing"
    IN = "in"


@dataclass
class _Slot:
    ticket: Ticket
    stage: Stage


class Cohort:
    """The clients of one attempt, and their updates.

    Args:
        names: of those who were drawn, sorted.
        absent: those of them who are not here.

    Attributes:
        names: as given; a name's place is its rank.
        storing: updates that are on their way to the disk.
    """

    def __init__(self, names: Iterable[str] = (), absent: Iterable[str] = ()) -> None:
        self.names = tuple(names)
        self.storing = 0
        self._ranks = {name: rank for rank, name in enumerate(self.names)}
        self._slots: dict[str, _Slot] = {}
        self._pending = dict.fromkeys(self.names)
        self._absent = set(absent)

    # Who

    def rank(self, name: str) -> int | None:
        """Place in the cohort; None for a name that was not drawn."""
        return self._ranks.get(name)

    def parted(self, name: str) -> None:
        """A client is not here any more."""
        if name in self._pending:
            self._absent.add(name)

    def returned(self, name: str) -> None:
        """A client is here, for the first time or again."""
        self._absent.discard(name)

    # Their updates

    def ticket(self, name: str) -> Ticket | None:
        """Of the newest update of a name, if there is one."""
        slot = self._slots.get(name)
        return slot.ticket if slot else None

    def stage(self, name: str) -> Stage | None:
        """How far the newest update of a name has come; None if there is none."""
        slot = self._slots.get(name)
        return slot.stage if slot else None

    def has(self, ticket: Ticket, stage: Stage) -> bool:
        """Whether a ticket's update is its client's newest, and this far."""
        return self._slots.get(ticket.name) == _Slot(ticket, stage)

    def put(self, ticket: Ticket, stage: Stage) -> None:
        """A ticket's update is its client's newest, and this far."""
        self.storing += (stage is Stage.STORING) - (self.stage(ticket.name) is Stage.STORING)
        self._slots[ticket.name] = _Slot(ticket, stage)
        if stage is Stage.IN:
            self._pending.pop(ticket.name, None)
            self._absent.discard(ticket.name)

    def drop(self, name: str) -> None:
        """Forget the update of a name, which is still uploading."""
        del self._slots[name]

    # What is known of them all

    @property
    def received(self) -> int:
        """Updates that are in."""
        return len(self.names) - len(self._pending)

    @property
    def pending(self) -> Collection[str]:
        """Names whose update is not in, wherever they are; by rank."""
        return self._pending.keys()

    @property
    def missing(self) -> int:
        """How many are here and have their update not in."""
        return len(self._pending) - len(self._absent)

    @property
    def submitted(self) -> tuple[str, ...]:
        """Names whose update is in, by rank."""
        return tuple(name for name in self.names if name not in self._pending)
