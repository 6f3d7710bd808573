"""Who is here: names, sessions, leases and data partitions. Pure, like `rounds`.

No call looks at every name, but for `live` and `awaited`, and for giving a partition away that
was somebody's: with many clients, each of them calls often.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from common.errors import AlreadyExists, Busy, ProtocolError, SessionUnknown

INSTANCE_BYTES: Final = 16
NAME_LENGTH: Final = 64
RETRY_SECONDS: Final = 10.0
"""When a client that found no data partition is to ask again, at the latest."""


@dataclass(frozen=True)
class PartitionGiven:
    """A name got a data partition, to keep until it is gone and another needs it."""

    name: str
    index: int


@dataclass(frozen=True)
class Parted:
    """A client is gone, and why."""

    name: str
    reason: str


MemberEffects = tuple[PartitionGiven | Parted, ...]


@dataclass
class _Member:
    session: str
    instance: bytes
    expires: float


class Members:
    """The clients of one run, by name.

    One that joins when there are as many as partitions counts as here once it asks for something
    to do: whoever only joins, again and again, must not be waited for.

    Args:
        partition_count: data partitions that can be handed out.
        lease_seconds: how long a silent client counts as live.
        grace_seconds: how long one is waited for whose lease ran out, or who was here before the
            server was restarted.
        partitions: index by name, as an earlier process of the server handed them out.
    """

    def __init__(
        self,
        partition_count: int,
        lease_seconds: float,
        grace_seconds: float,
        partitions: Mapping[str, int],
    ) -> None:
        self.partition_count = partition_count
        self.lease_seconds = lease_seconds
        self.grace_seconds = grace_seconds
        self._partitions = dict(partitions)
        self._members: dict[str, _Member] = {}
        self._sessions: dict[str, str] = {}
        self._idle: set[str] = set()
        # (when, session), soonest first. A renewal leaves its entry as it is: when that comes up
        # it is put back if the lease runs longer by then, and dropped if the session has ended.
        self._leases: list[tuple[float, str]] = []
        self._awaited: dict[str, float] = {}
        # (when, name), soonest first; an entry of who came back, or was given up, is dropped.
        self._returns: list[tuple[float, str]] = []
        self._held_until = -math.inf
        # Indices that nobody was ever given, the lowest last.
        given = set(self._partitions.values())
        self._unused = [i for i in reversed(range(partition_count)) if i not in given]

    def await_return(self, now: float, names: Iterable[str]) -> None:
        """Hold the place of clients that were here before the server was restarted."""
        self._held_until = now + self.grace_seconds
        for name in sorted(names):
            self._await(name, self._held_until)

    def join(
        self, now: float, name: str, instance: bytes, session: str, wants_partition: bool
    ) -> MemberEffects:
        """Enrol a client; one of the same name and instance is replaced.

        Raises:
            ProtocolError: the name or the instance is malformed.
            AlreadyExists: another live instance holds the name.
            Busy: all partitions are held by clients that are here, or are waited for after a
                restart.
        """
        check_identity(name, instance)
        held = self._members.get(name)
        if held and held.instance != instance and held.expires > now:
            raise AlreadyExists(f"another live client is called {name}: choose another name")
        changes: MemberEffects = ()
        if wants_partition and name not in self._partitions:
            given = PartitionGiven(name, self._free_partition(now))
            changes = (given, *self._take_partition(given))
        if held:
            del self._sessions[held.session]
        elif name not in self._awaited and self.count >= self.partition_count:
            self._idle.add(name)
        expires = now + self.lease_seconds
        self._members[name] = _Member(session, instance, expires)
        self._sessions[session] = name
        heapq.heappush(self._leases, (expires, session))
        self._awaited.pop(name, None)
        return changes

    def is_idle(self, session: str) -> bool:
        """Whether a client does not count as here before it asks; raises SessionUnknown."""
        return self.name_of(session) in self._idle

    def ask(self, session: str) -> None:
        """The client of a session asks for something to do; raises SessionUnknown."""
        self._idle.discard(self.name_of(session))

    def leave(self, session: str) -> tuple[Parted, ...]:
        """End a session; unknown ones are gone already."""
        name = self._sessions.pop(session, None)
        if name is None:
            return ()
        del self._members[name]
        self._idle.discard(name)
        return (Parted(name, "left"),)

    def renew(self, now: float, session: str) -> str:
        """Extend the lease of a session, and say whose it is.

        Raises:
            SessionUnknown: there is no such session.
        """
        name = self.name_of(session)
        self._members[name].expires = now + self.lease_seconds
        return name

    def expire(self, now: float) -> tuple[Parted, ...]:
        """Drop those whose lease has run out, and wait no longer for those who did not return."""
        gone = []
        while self._next_lease() <= now:
            _, session = heapq.heappop(self._leases)
            name = self._sessions.pop(session)
            del self._members[name]
            gone.append(Parted(name, "its lease ran out"))
            if name in self._idle:
                self._idle.discard(name)
            elif self.grace_seconds > 0:
                self._await(name, now + self.grace_seconds)
        while self._next_return() <= now:
            _, name = heapq.heappop(self._returns)
            del self._awaited[name]
            gone.append(Parted(name, f"it did not come back within {self.grace_seconds:g} s"))
        return tuple(gone)

    def has(self, session: str) -> bool:
        """Whether there is such a session."""
        return session in self._sessions

    def session_of(self, name: str) -> str | None:
        """The session of a name, if it has one."""
        member = self._members.get(name)
        return None if member is None else member.session

    def give_up(self, names: Iterable[str]) -> None:
        """Wait no longer for some to come back."""
        for name in names:
            self._awaited.pop(name, None)

    def name_of(self, session: str) -> str:
        """Whose session it is.

        Raises:
            SessionUnknown: nobody's.
        """
        name = self._sessions.get(session)
        if name is None:
            raise SessionUnknown("this session is unknown or has run out: join again")
        return name

    @property
    def count(self) -> int:
        """Clients that are here; who is out of lease counts until `expire` is called."""
        return len(self._members) - len(self._idle)

    @property
    def awaits(self) -> bool:
        """Whether anybody is waited for to come back; until `expire` is called, likewise."""
        return bool(self._awaited)

    def here(self, name: str) -> bool:
        """Whether a name counts as here or is waited for; both until `expire`, likewise."""
        return name in self._members or name in self._awaited

    def live(self, now: float) -> tuple[str, ...]:
        """Names with a lease, sorted."""
        return tuple(sorted(self._leased(now) - self._idle))

    def awaited(self, now: float) -> tuple[str, ...]:
        """Names that are gone without a word and may yet come back, sorted."""
        return tuple(sorted(name for name, until in self._awaited.items() if until > now))

    def waits(self, now: float, needed: int, known: Iterable[str]) -> str:
        """For whom it is to wait before a round opens, in words.

        Args:
            now: seconds.
            needed: clients.
            known: names that are expected besides those who have a partition.
        """
        if self.count >= needed:
            return f"waiting for {some(self.awaited(now))} to come back"
        gone = sorted({*known, *self._partitions} - self._members.keys())
        who = f"; missing: {some(gone)}" if gone else ""
        return f"waiting for clients, {self.count} of {needed} are here{who}"

    def _leased(self, now: float) -> set[str]:
        return {name for name, member in self._members.items() if member.expires > now}

    def _free_partition(self, now: float) -> int:
        """One that nobody was given, else one of a client that is gone."""
        if self._unused:
            return self._unused[-1]
        awaited = set(self.awaited(now)) if now < self._held_until else set()
        here = awaited.union(self._leased(now))
        held = {index: name for name, index in self._partitions.items() if name in here}
        free = set(range(self.partition_count)).difference(held)
        if not free:
            raise self._full(now, sorted(held.values()), awaited)
        return min(free)

    def _full(self, now: float, holders: list[str], awaited: set[str]) -> Busy:
        """Who holds the partitions, for one who wants one."""
        line = f"all {self.partition_count} data partitions are held, by {some(holders)}"
        if late := [name for name in holders if name in awaited]:
            left = self._held_until - now
            why = f"the server was restarted and waits {math.ceil(left)} s for {some(late)}"
            return Busy(f"{line}; {why}", min(left, RETRY_SECONDS))
        why = "bring other data, or start a run with more data.clients"
        return Busy(f"{line}; {why}", RETRY_SECONDS)

    def _take_partition(self, given: PartitionGiven) -> tuple[Parted, ...]:
        """Give it away; nobody waits any longer for the one whose it was."""
        if self._unused:
            self._partitions[given.name] = self._unused.pop()
            return ()
        before = [n for n in self._awaited if self._partitions.get(n) == given.index]
        self.give_up(before)
        give_partition(self._partitions, given.name, given.index)
        return tuple(Parted(name, f"{given.name} has its data partition") for name in before)

    def partition(self, name: str) -> int | None:
        """The data partition of a name, if it has one."""
        return self._partitions.get(name)

    def next_expiry(self) -> float:
        """When the next lease or wait runs out; infinity without any."""
        return min(self._next_lease(), self._next_return())

    def _await(self, name: str, until: float) -> None:
        self._awaited[name] = until
        heapq.heappush(self._returns, (until, name))

    def _next_return(self) -> float:
        """When the first wait runs out; its entry is the first of the queue then."""
        while self._returns:
            until, name = self._returns[0]
            if self._awaited.get(name) == until:
                return until
            heapq.heappop(self._returns)
        return math.inf

    def _next_lease(self) -> float:
        """When the first lease runs out; its entry is the first of the queue then."""
        while self._leases:
            when, session = self._leases[0]
            name = self._sessions.get(session)
            if name is None:
                heapq.heappop(self._leases)
            elif (expires := self._members[name].expires) != when:
                heapq.heapreplace(self._leases, (expires, session))
            else:
                return when
        return math.inf


def check_identity(name: str, instance: bytes) -> None:
    """Refuse malformed names and instances.

    Raises:
        ProtocolError: the name is not 1 to 64 printable characters, or the instance not 16
            bytes.
    """
    if not (1 <= len(name) <= NAME_LENGTH and name.isprintable()):
        raise ProtocolError(f"a client name has 1 to {NAME_LENGTH} printable characters")
    if len(instance) != INSTANCE_BYTES:
        raise ProtocolError(f"an instance is {INSTANCE_BYTES} bytes, not {len(instance)}")


def give_partition(partitions: dict[str, int], name: str, index: int) -> None:
    """Give a partition to a name, and to that name alone."""
    for other in [other for other, held in partitions.items() if held == index]:
        del partitions[other]
    partitions[name] = index


def some(names: Collection[str]) -> str:
    """The first few names, for a person."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(islice(names, 3)) + more
