"""One round's cohort: who is asked to train, and how far each one's update has come. Pure.

No call but `replace` and `submitted` looks at every name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from common.errors import AlreadyExists, WrongRound
from server.events import Claimed, Ticket


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
    """The clients of one round, and their updates.

    Args:
        round_: that they are asked in.
        names: of those who are asked, by rank.
        absent: those of them who are not here.

    Attributes:
        names: as given, but for those who were replaced.
        storing: updates that are on their way to the disk.
    """

    def __init__(
        self, round_: int = 0, names: Iterable[str] = (), absent: Iterable[str] = ()
    ) -> None:
        self._round = round_
        self._serial = 0
        self.names = tuple(names)
        self.storing = 0
        self._ranks = {name: rank for rank, name in enumerate(self.names)}
        self._slots: dict[str, _Slot] = {}
        self._pending = dict.fromkeys(self.names)
        self._absent = set(absent)

    # Who

    def rank(self, name: str) -> int | None:
        """Place in the cohort; None for a name that is not asked."""
        return self._ranks.get(name)

    def give_up(self, *names: str) -> None:
        """Wait no longer for clients that are gone, or late; their updates are welcome still."""
        self._absent.update(name for name in names if name in self._pending)

    def returned(self, name: str) -> None:
        """A client is here, for the first time or again."""
        self._absent.discard(name)

    def replace(self, others: Mapping[str, str]) -> None:
        """Give the places of clients whose update is not in, and not being stored, to others.

        Args:
            others: who gets the place, by whose it was; they are here.
        """
        pending = {others.get(name, name) for name in self._pending}
        self.names = tuple(others.get(name, name) for name in self.names)
        self._ranks = {name: rank for rank, name in enumerate(self.names)}
        self._pending = dict.fromkeys(name for name in self.names if name in pending)
        self._absent.difference_update(others)
        for name in others:
            self._slots.pop(name, None)

    # Their updates

    def ticket(self, name: str, digest: bytes) -> Ticket:
        """A new one, for an update of a name that is asked."""
        self._serial += 1
        return Ticket(self._serial, name, self._round, self._ranks[name], digest)

    def check_place(self, name: str, place: tuple[int, int]) -> None:
        """Compare the (rank, cohort size) that an update was made for with those of its client.

        Raises:
            WrongRound: they differ.
        """
        rank, size = self._ranks[name], len(self.names)
        if place != (rank, size):
            raise WrongRound(
                f"the update was made for rank {place[0]} of {place[1]}, but {name} is {rank} "
                f"of {size} in round {self._round}",
                self._round,
            )

    def claimed(self, name: str, digest: bytes) -> Claimed | None:
        """Why an update of a name need not be sent; None if it is.

        Raises:
            AlreadyExists: a different one is in, or being stored.
        """
        slot = self._slots.get(name)
        if slot is None or slot.stage is Stage.UPLOADING:
            return None
        if slot.ticket.digest != digest:
            raise AlreadyExists(f"a different update of {name} for round {self._round} is in")
        return Claimed.DUPLICATE if slot.stage is Stage.IN else Claimed.STORING

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
        """How many updates are still waited for."""
        return len(self._pending) - len(self._absent)

    @property
    def replaceable(self) -> list[str]:
        """Names whose update is not in, those first who are not waited for."""
        return sorted(self._pending, key=lambda name: name not in self._absent)

    @property
    def submitted(self) -> tuple[str, ...]:
        """Names whose update is in, by rank."""
        return tuple(name for name in self.names if name not in self._pending)
