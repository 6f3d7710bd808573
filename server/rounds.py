"""The round state machine: events in, effects out.

    WAITING --enough clients--> OPEN --all in, or a quorum at the deadline--> CLOSING
     ^                          ^  |                                           |  |
     |        with others <-----'--'  below a quorum                           |  |
     '------------------------------aggregated, rounds left--------------------'  |
    FINISHED <----------------------aggregated, the last--------------------------'

A round takes no longer than the clients that answer need, and a deadline for those who do not.
Below a quorum, places of those who are late or gone are given to others who are here, once, for a
further deadline; then, or where nobody else is here, `Attendance.least` updates do. With fewer the
round goes on. Updates that are in stay in, whoever else is late: they were made for this state.
Who missed a deadline is no longer waited for, and left out of the next rounds (`attendance`).

Pure: no I/O, no clock (each event says what time it is), no randomness but the run's seed.
Times are seconds of any monotonic clock. Events are called by the engine alone; each first
validates and raises, and one that raises has changed nothing. There are two kinds:

    start, join, ask, leave,     change the members or the updates, and end in `_settle`, the one
    tick, commit, aggregated     place where the phase changes; what is to be done comes back as
                                 effects
    claim, store, release        move one client's upload; they take no time, change no phase and
                                 have no effects

An upload needs no effects, because it counts for nothing before `commit`: while it is claimed its
update is missing, and once it is stored all that it does is to hold up the end of the round.
Leases are renewed on `members`, since a longer lease calls for no change. What an event costs
does not depend on how many clients there are, but for those that open, change or end a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from common.config import RunConfig
from common.errors import AlreadyExists, NotInCohort, ProtocolError, WrongRound
from server.attendance import Absence, Attendance
from server.cohort import Cohort, Stage
from server.events import (
    Assignment,
    Claimed,
    Closing,
    Effect,
    Effects,
    Finished,
    Interrupted,
    Missed,
    Opened,
    Phase,
    Replaced,
    Ticket,
    Wait,
)
from server.members import MemberEffects, Members, Parted, some


class Rounds:
    """One run's rounds.

    Attributes:
        phase: see the module's diagram.
        round: the round that is open or next; rounds closed so far.
        members: who is here.
        attendance: who is asked.
    """

    def __init__(
        self,
        config: RunConfig,
        members: Members,
        round_: int = 0,
        absences: Mapping[str, Absence] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self.members = members
        self.attendance = Attendance(config, absences)
        self.phase = Phase.FINISHED if round_ >= config.rounds else Phase.WAITING
        self.round = round_
        self._cohort = Cohort()
        self._last: tuple[str, ...] = ()
        self._draw = 0
        self._deadline = math.inf

    # Events

    def start(self, now: float, earlier: Interrupted | None = None) -> Effects:
        """Begin, or go on with the round that the previous process of the server left open."""
        self._last = self.members.awaited(now)
        self._deadline = now + self._config.grace_seconds
        if earlier is not None:
            self._open(now, earlier.cohort)
            self._draw = earlier.draw
            for name, digest in earlier.submitted.items():
                self._cohort.put(self._cohort.ticket(name, digest), Stage.IN)
            if earlier.closing:
                return (self._close(), *self._settle(now))
        return self._settle(now)

    def join(
        self, now: float, name: str, instance: bytes, session: str, wants_partition: bool
    ) -> Effects:
        """Enrol a client under a fresh session token; see `Members.join` for what it raises."""
        changes = self.members.join(now, name, instance, session, wants_partition)
        self._cohort.returned(name)
        return (*self._without(changes), *self._settle(now))

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
        if round_ != self.round or not self.cohort:
            raise WrongRound(self._which(round_), self.round)
        self._check_asked(name)
        if (held := self._cohort.claimed(name, digest)) is not None:
            return held
        if self.phase is not Phase.OPEN:
            raise WrongRound(self._which(round_), self.round)
        self._cohort.check_place(name, place)
        ticket = self._cohort.ticket(name, digest)
        self._cohort.put(ticket, Stage.UPLOADING)
        return ticket

    def store(self, ticket: Ticket) -> None:
        """The payload is here, whole and decoded; from now on it holds up the closing.

        Raises:
            WrongRound, NotInCohort, AlreadyExists: as in `check`.
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
        self._last, self._cohort = self.cohort, Cohort()
        self.phase = Phase.FINISHED if self.round >= self._config.rounds else Phase.WAITING
        self._deadline = now + self._config.grace_seconds
        return self._settle(now)

    # Questions

    def check(self, ticket: Ticket) -> None:
        """Whether an upload is still worth reading.

        Raises:
            WrongRound: the round that the ticket belongs to is over.
            NotInCohort: the client's place was given to another.
            AlreadyExists: a newer call of the same client took its place.
        """
        if (self.phase, self.round) != (Phase.OPEN, ticket.round):
            raise WrongRound(self._which(ticket.round), self.round)
        self._check_asked(ticket.name)
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
        rank = self._cohort.rank(name)
        uploading = self._cohort.stage(name) in (None, Stage.UPLOADING)
        if self.phase is Phase.OPEN and rank is not None and uploading:
            return Assignment(self.round, rank, len(self.cohort), max(0.0, self._deadline - now))
        reason = self.describe(now)
        if (absence := self.attendance.left_out(name, self.round)) is not None:
            reason = f"{absence}; {reason}"
        return Wait(reason, self.members.count, self.attendance.needed(self.round))

    def describe(self, now: float) -> str:
        """What the run waits for, in one line."""
        if self.phase is Phase.FINISHED:
            return f"finished after {self.round} rounds"
        if self.phase is Phase.CLOSING:
            return f"round {self.round}: aggregating {self._cohort.received} updates"
        if self.phase is Phase.OPEN:
            return f"round {self.round}: waiting for the update of {some(self._cohort.pending)}"
        needed = self.attendance.needed(self.round)
        return f"round {self.round}: {self.members.waits(now, needed, self._last)}"

    @property
    def cohort(self) -> tuple[str, ...]:
        """Names asked to train, by rank; empty unless the phase is OPEN or CLOSING."""
        return self._cohort.names

    @property
    def submitted(self) -> tuple[str, ...]:
        """Names whose update is durable and folded, by rank."""
        return self._cohort.submitted

    @property
    def updates(self) -> Cohort:
        """How far they have come in this round; to be asked, not told."""
        return self._cohort

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity if nothing runs out."""
        held_up = {
            Phase.WAITING: self.members.count < self.attendance.needed(self.round),
            Phase.OPEN: self._cohort.storing > 0,
        }.get(self.phase, True)
        return min(math.inf if held_up else self._deadline, self.members.next_expiry())

    # The funnel

    def _settle(self, now: float) -> Effects:
        """Expire leases, then change phase until nothing calls for a change."""
        effects: list[Effect] = list(self._without(self.members.expire(now)))
        while True:
            more: Effects = ()
            if self.phase is Phase.WAITING:
                more = self._leave_waiting(now)
            elif self.phase is Phase.OPEN:
                more = self._leave_open(now)
            if not more:
                return tuple(effects)
            effects.extend(more)

    def _leave_waiting(self, now: float) -> Effects:
        if self.members.count < self.attendance.needed(self.round):
            return ()
        # However many come and go meanwhile.
        if self.members.awaits and now < self._deadline:
            return ()
        self._open(now, self.attendance.cohort(self.round, self.members.live(now)))
        return (Opened(self.round, self.cohort),)

    def _leave_open(self, now: float) -> Effects:
        # An update on its way to the disk is in the journal or not when the server dies; the
        # round must not close over it.
        if self._cohort.storing:
            return ()
        size, received, waits = len(self.cohort), self._cohort.received, self._cohort.missing > 0
        late = now >= self._deadline
        if received >= self.attendance.enough(size):
            return (self._close(),)
        if waits and not late:
            return ()
        missed = self._miss() if late else ()
        if received >= self.attendance.quorum(size):
            return (*missed, self._close())
        does = received >= self.attendance.least
        if not (does and self._draw) and (replaced := self._replace(now, late)):
            return (*missed, *replaced)
        if late and does:
            return (*missed, self._close())
        if late:
            self._deadline = now + self._config.round.deadline_seconds
        return missed

    def _open(self, now: float, cohort: Iterable[str]) -> None:
        self.phase, self._draw = Phase.OPEN, 0
        names = tuple(cohort)
        absent = [name for name in names if not self.members.here(name)]
        self._cohort = Cohort(self.round, names, absent)
        self._deadline = now + self._config.round.deadline_seconds

    def _miss(self) -> Effects:
        """The deadline passed: wait no longer for those whose update is not in."""
        names = tuple(self._cohort.pending)
        self._cohort.give_up(*names)
        self.members.give_up(names)
        missed = self.attendance.missed(self.round, names)
        return (Missed(self.round, missed),) if missed else ()

    def _replace(self, now: float, late: bool) -> Effects:
        """Give the places of those who are late or gone to others, as far as others are here."""
        draw, live = self._draw + 1, self.members.live(now)
        drawn = self.attendance.others(self.round, draw, live, self.cohort, late)
        others = dict(zip(self._cohort.replaceable, drawn, strict=False))
        if not others:
            return ()
        self._cohort.replace(others)
        self.members.give_up(others)
        self._draw, self._deadline = draw, now + self._config.round.deadline_seconds
        return (Replaced(self.round, draw, self.cohort, others),)

    def _close(self) -> Closing:
        self.phase = Phase.CLOSING
        self.attendance.closed(self.round, self.submitted)
        return Closing(self.round, self.submitted)

    def _without(self, changes: MemberEffects) -> MemberEffects:
        """Note in the cohort who is gone for good."""
        for change in changes:
            if isinstance(change, Parted) and not self.members.here(change.name):
                self._cohort.give_up(change.name)
        return changes

    def _which(self, asked: int) -> str:
        if asked == self.round:
            return f"round {asked} takes no updates now: it is {self.phase}"
        over = "is over" if asked < self.round else "is not open"
        return f"round {asked} {over}; the run is at round {self.round}"

    def _check_asked(self, name: str) -> None:
        if self._cohort.rank(name) is None:
            absence = self.attendance.left_out(name, self.round)
            why = f"{name} is {absence}" if absence else f"{name} is not in the cohort"
            raise NotInCohort(f"round {self.round}: {why}; await the next")
