"""The round state machine: events in, effects out.

    WAITING --enough clients--> OPEN --all in, or quorum at the deadline--> CLOSING
     ^  ^                        |                                           |  |
     |  '------below quorum at the deadline, or for good: run it again        |  |
     '-------------------------------aggregated, rounds left-----------------'  |
    FINISHED <------------------------------aggregated, the last----------------'

Pure: no I/O, no clock (each event says what time it is), no randomness but the run's seed.
Times are seconds of any monotonic clock. Events are called by the engine alone; each first
validates and raises, and one that raises has changed nothing. There are two kinds:

    start, join, ask, leave,     change the members or the updates, and end in `_settle`, the one
    tick, commit, aggregated     place where the phase changes; what is to be done comes back as
                                 effects
    claim, store, release        move one client's upload; they take no time, change no phase and
                                 have no effects

An upload needs no effects, because it counts for nothing before `commit`: while it is claimed its
update is missing, and once it is stored all that it does is to hold up the end of the attempt.
Leases are renewed on `members`, since a longer lease calls for no change. What an event costs
does not depend on how many clients there are, but for those that open or end an attempt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from enum import StrEnum
from itertools import islice

from common.config import RunConfig
from common.errors import AlreadyExists, NotInCohort, ProtocolError, WrongRound
from common.seeding import derive
from server.cohort import Cohort, Stage
from server.events import (
    Assignment,
    Claimed,
    Closing,
    Discarded,
    Effect,
    Effects,
    Finished,
    Interrupted,
    Opened,
    Ticket,
    Wait,
)
from server.members import Members, Parted


class Phase(StrEnum):
    """Where the open round stands."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSING = "closing"
    FINISHED = "finished"


class Rounds:
    """One run's rounds.

    Attributes:
        phase: see the module's diagram.
        round: the round that is open or next; rounds closed so far.
        attempt: how often this round was run below quorum.
        members: who is here.
    """

    def __init__(self, config: RunConfig, members: Members, round_: int = 0) -> None:
        self._config = config
        self.members = members
        self.phase = Phase.FINISHED if round_ >= config.rounds else Phase.WAITING
        self.round = round_
        self.attempt = 0
        self._cohort = Cohort()
        self._serial = 0
        self._deadline = math.inf

    # Events

    def start(self, now: float, attempt: int = 0, earlier: Interrupted | None = None) -> Effects:
        """Begin, or go on with the attempt that the previous process of the server left open."""
        self.attempt = attempt
        if earlier is not None:
            self._open(now, earlier.cohort)
            for name, digest in earlier.submitted.items():
                self._cohort.put(self._ticket(name, digest), Stage.IN)
            if earlier.closing:
                return (self._close(), *self._settle(now))
        return self._settle(now)

    def join(
        self, now: float, name: str, instance: bytes, session: str, wants_partition: bool
    ) -> Effects:
        """Enrol a client under a fresh session token; see `Members.join` for what it raises."""
        given = self.members.join(now, name, instance, session, wants_partition)
        self._cohort.returned(name)
        return (*given, *self._settle(now))

    def ask(self, now: float, session: str) -> Effects:
        """A client asks for something to do; see `Members`. Raises SessionUnknown."""
        self.members.ask(session)
        return self._settle(now)

    def leave(self, now: float, session: str) -> Effects:
        """End a session; unknown ones are gone already."""
        return (*self._without(self.members.leave(session)), *self._settle(now))

    def tick(self, now: float) -> Effects:
        """Let leases and the deadline run out; see `next_deadline`."""
        return self._settle(now)

    def claim(
        self, session: str, round_: int, place: tuple[int, int], digest: bytes
    ) -> Ticket | Claimed:
        """Announce an update before its payload is sent.

        A newer claim of the same client takes the place of one that is still uploading: the
        older stream is most likely a dead connection.

        Args:
            session: of the client.
            round_: that the update was made for.
            place: (rank, cohort size) that the update was made for.
            digest: SHA-256 of the payload.

        Raises:
            SessionUnknown: there is no such session.
            WrongRound: another round is open, or this one with another cohort.
            NotInCohort: the client was not asked to train.
            AlreadyExists: a different update of this client is in.
        """
        name = self.members.name_of(session)
        rank, size = self._cohort.rank(name), len(self.cohort)
        if round_ != self.round or not size:
            raise WrongRound(self._which(round_), self.round)
        if rank is None:
            raise NotInCohort(f"{name} is not in the cohort of round {round_}; await the next")
        held, stage = self._cohort.ticket(name), self._cohort.stage(name)
        if held is not None and stage is not Stage.UPLOADING:
            if held.digest != digest:
                raise AlreadyExists(f"a different update of {name} for round {round_} is in")
            return Claimed.DUPLICATE if stage is Stage.IN else Claimed.STORING
        if self.phase is not Phase.OPEN:
            raise WrongRound(self._which(round_), self.round)
        if place != (rank, size):
            raise WrongRound(
                f"the update was made for rank {place[0]} of {place[1]}, but {name} is {rank} "
                f"of {size} in round {round_}",
                self.round,
            )
        ticket = self._ticket(name, digest)
        self._cohort.put(ticket, Stage.UPLOADING)
        return ticket

    def store(self, ticket: Ticket) -> None:
        """The payload is here, whole and decoded; from now on it holds up the closing.

        Raises:
            WrongRound, AlreadyExists: as in `check`.
        """
        self.check(ticket)
        self._cohort.put(ticket, Stage.STORING)

    def commit(self, now: float, ticket: Ticket) -> Effects:
        """The update of a ticket that was stored is durable and folded."""
        if not self._cohort.has(ticket, Stage.STORING):
            raise ProtocolError(f"the update of {ticket.name} was not being stored")
        self._cohort.put(ticket, Stage.IN)
        return self._settle(now)

    def release(self, ticket: Ticket) -> None:
        """Give up a ticket whose upload failed; one that is storing, in or gone stays so."""
        if self._cohort.has(ticket, Stage.UPLOADING):
            self._cohort.drop(ticket.name)

    def aggregated(self, now: float) -> Effects:
        """The closed round's result is durable: go on to the next round."""
        if self.phase is not Phase.CLOSING:
            raise ProtocolError(f"round {self.round} is {self.phase}, not closing")
        self.round += 1
        self.attempt = 0
        self._shut(Phase.FINISHED if self.round >= self._config.rounds else Phase.WAITING)
        return self._settle(now)

    # Questions

    def check(self, ticket: Ticket) -> None:
        """Whether an upload is still worth reading.

        Raises:
            WrongRound: the attempt that the ticket belongs to is over.
            AlreadyExists: a newer call of the same client took its place.
        """
        attempt = (self.phase, self.round, self.attempt)
        if attempt != (Phase.OPEN, ticket.round, ticket.attempt):
            raise WrongRound(self._which(ticket.round), self.round)
        if not self._cohort.has(ticket, Stage.UPLOADING):
            raise AlreadyExists(f"a newer call of {ticket.name} took the place of this upload")

    def outcome(self, now: float, session: str) -> Assignment | Wait | Finished:
        """What the client of a session is to do.

        Raises:
            SessionUnknown: there is no such session.
        """
        name = self.members.name_of(session)
        if self.phase is Phase.FINISHED:
            return Finished(self.round)
        rank, uploading = (
            self._cohort.rank(name),
            self._cohort.stage(name) in (None, Stage.UPLOADING),
        )
        if self.phase is Phase.OPEN and rank is not None and uploading:
            return Assignment(self.round, rank, len(self.cohort), max(0.0, self._deadline - now))
        return Wait(self.describe(now), self.members.count, self._config.min_clients)

    def describe(self, now: float) -> str:
        """What the run waits for, in one line."""
        if self.phase is Phase.FINISHED:
            return f"finished after {self.round} rounds"
        if self.phase is Phase.CLOSING:
            return f"round {self.round}: aggregating {self._cohort.received} updates"
        if self.phase is Phase.OPEN:
            return f"round {self.round}: waiting for the update of {_some(self._cohort.pending)}"
        live, needed = self.members.count, self._config.min_clients
        if live >= needed:
            awaited = _some(self.members.awaited(now))
            return f"round {self.round}: waiting for {awaited} to come back after a restart"
        return f"round {self.round}: waiting for clients, {live} of {needed} are here"

    @property
    def cohort(self) -> tuple[str, ...]:
        """Names asked to train, sorted; empty unless the phase is OPEN or CLOSING."""
        return self._cohort.names

    @property
    def submitted(self) -> tuple[str, ...]:
        """Names whose update is durable and folded, sorted."""
        return self._cohort.submitted

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity if nothing runs out."""
        deadline = math.inf if self._cohort.storing else self._deadline
        return min(deadline, self.members.next_expiry())

    # The funnel

    def _settle(self, now: float) -> Effects:
        """Expire leases, then change phase until nothing calls for a change."""
        effects: list[Effect] = list(self._without(self.members.expire(now)))
        while True:
            effect: Effect | None = None
            if self.phase is Phase.WAITING:
                effect = self._leave_waiting(now)
            elif self.phase is Phase.OPEN:
                effect = self._leave_open(now)
            if effect is None:
                return tuple(effects)
            effects.append(effect)

    def _leave_waiting(self, now: float) -> Opened | None:
        if self.members.count < self._config.min_clients or self.members.awaits:
            return None
        live = self.members.live(now)
        seed, size = self._config.seed, _share(self._config.round.participation, len(live))
        drawn = sorted(live, key=lambda n: derive(seed, "cohort", self.round, self.attempt, n))
        self._open(now, sorted(drawn[:size]))
        return Opened(self.round, self.attempt, self.cohort)

    def _leave_open(self, now: float) -> Closing | Discarded | None:
        # An update on its way to the disk is in the journal or not when the server dies; the
        # round must not close over it.
        if self._cohort.storing:
            return None
        missing, received = self._cohort.missing, self._cohort.received
        needed = _share(self._config.round.quorum, len(self.cohort))
        if received >= needed and (not missing or now >= self._deadline):
            return self._close()
        # Those who are gone may be back under other names; enough of them, and it starts anew.
        hopeless = not missing and self.members.count >= self._config.min_clients
        if now < self._deadline and not hopeless:
            return None
        effect = Discarded(self.round, self.attempt, received, needed)
        self.attempt += 1
        self._shut(Phase.WAITING)
        return effect

    def _open(self, now: float, cohort: Iterable[str]) -> None:
        self.phase = Phase.OPEN
        names = tuple(cohort)
        self._cohort = Cohort(names, [name for name in names if not self.members.here(name)])
        self._deadline = now + self._config.round.deadline_seconds

    def _close(self) -> Closing:
        self.phase = Phase.CLOSING
        self._deadline = math.inf
        return Closing(self.round, self.attempt, self.submitted)

    def _shut(self, phase: Phase) -> None:
        self.phase = phase
        self._cohort = Cohort()
        self._deadline = math.inf

    def _ticket(self, name: str, digest: bytes) -> Ticket:
        self._serial += 1
        rank = self._cohort.rank(name)
        assert rank is not None  # noqa: S101 - narrows the type
        return Ticket(self._serial, name, self.round, self.attempt, rank, digest)

    def _without(self, gone: tuple[Parted, ...]) -> tuple[Parted, ...]:
        """Note in the cohort who is gone."""
        for parted in gone:
            self._cohort.parted(parted.name)
        return gone

    def _which(self, asked: int) -> str:
        if asked == self.round:
            return f"round {asked} takes no updates now: it is {self.phase}"
        return f"round {asked} is not open; the run is at round {self.round}"


def _share(share: float, of: int) -> int:
    """ceil(share * of), at least 1, blind to the last bits of a product such as 0.1 * 30."""
    return max(1, math.ceil(share * of - 1e-9))


def _some(names: Collection[str]) -> str:
    """The first few names, for a person."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(islice(names, 3)) + more
