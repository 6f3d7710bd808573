"""Who is here: names, sessions, leases and data partitions. Pure, like `rounds`.

No call looks at every name, but for `live` and `awaited`, and for giving a partition away that
was somebody's: with many clients, each of them calls often.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from common.errors import AlreadyExists, ProtocolError, RunMismatch, SessionUnknown

INSTANCE_BYTES: Final = 16
NAME_LENGTH: Final = 64
REJOIN_SECONDS: Final = 60.0
"""How long a restarted server holds the place of those who were here before."""


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
        partitions: index by name, as an earlier process of the server handed them out.
    """

    def __init__(
        self, partition_count: int, lease_seconds: float, partitions: Mapping[str, int]
    ) -> None:
        self.partition_count = partition_count
        self.lease_seconds = lease_seconds
        self._partitions = dict(partitions)
        self._members: dict[str, _Member] = {}
        self._sessions: dict[str, str] = {}
        self._idle: set[str] = set()
        # (when, session), soonest first. A renewal leaves its entry as it is: when that comes up
        # it is put back if the lease runs longer by then, and dropped if the session has ended.
        self._leases: list[tuple[float, str]] = []
        self._awaited: set[str] = set()
        self._awaited_until = math.inf
        # Indices that nobody was ever given, the lowest last.
        given = set(self._partitions.values())
        self._unused = [i for i in reversed(range(partition_count)) if i not in given]

    def await_return(self, now: float, names: Iterable[str]) -> None:
        """Hold the place of clients that were here before the server was restarted."""
        self._awaited = set(names)
        self._awaited_until = now + max(REJOIN_SECONDS, self.lease_seconds)

    def join(
        self, now: float, name: str, instance: bytes, session: str, wants_partition: bool
    ) -> tuple[PartitionGiven, ...]:
        """Enrol a client; one of the same name and instance is replaced.

        Raises:
            ProtocolError: the name or the instance is malformed.
            AlreadyExists: another live instance holds the name.
            RunMismatch: all partitions are held by clients that are here.
        """
        check_identity(name, instance)
        held = self._members.get(name)
        if held and held.instance != instance and held.expires > now:
            raise AlreadyExists(f"another live client is called {name}: choose another name")
        given: tuple[PartitionGiven, ...] = ()
        if wants_partition and name not in self._partitions:
            given = (PartitionGiven(name, self._free_partition(now)),)

        for partition in given:
            self._take_partition(partition)
        if held:
            del self._sessions[held.session]
        elif name not in self._awaited and self.count >= self.partition_count:
            self._idle.add(name)
        expires = now + self.lease_seconds
        self._members[name] = _Member(session, instance, expires)
        self._sessions[session] = name
        heapq.heappush(self._leases, (expires, session))
        self._awaited.discard(name)
        return given

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
        """Drop those whose lease has run out, and the places that were held for too long."""
        gone = []
        while self._next_lease() <= now:
            _, session = heapq.heappop(self._leases)
            name = self._sessions.pop(session)
            del self._members[name]
            self._idle.discard(name)
            gone.append(Parted(name, "its lease ran out"))
        if self._awaited and self._awaited_until <= now:
            late = sorted(self._awaited)
            gone += [Parted(name, "it did not come back after a restart") for name in late]
            self._awaited.clear()
        return tuple(gone)

    def has(self, session: str) -> bool:
        """Whether there is such a session."""
        return session in self._sessions

    def session_of(self, name: str) -> str | None:
        """The session of a name, if it has one."""
        member = self._members.get(name)
        return None if member is None else member.session

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
        """Whether anybody's place is held after a restart; until `expire` is called, likewise."""
        return bool(self._awaited)

    def here(self, name: str) -> bool:
        """Whether a name counts as here or has its place held; both until `expire`, likewise."""
        return name in self._members or name in self._awaited

    def live(self, now: float) -> tuple[str, ...]:
        """Names with a lease, sorted."""
        return tuple(sorted(self._leased(now) - self._idle))

    def awaited(self, now: float) -> tuple[str, ...]:
        """Names that were here before a restart and may yet come back, sorted."""
        return tuple(sorted(self._awaited)) if self._awaited_until > now else ()

    def _leased(self, now: float) -> set[str]:
        return {name for name, member in self._members.items() if member.expires > now}

    def _free_partition(self, now: float) -> int:
        """One that nobody was given, else one of a client that is gone."""
        if self._unused:
            return self._unused[-1]
        here = {*self._leased(now), *self._awaited}
        held = {index for name, index in self._partitions.items() if name in here}
        free = set(range(self.partition_count)) - held
        if not free:
            raise RunMismatch(
                f"all {self.partition_count} partitions are held by clients that are here: "
                f"bring other data, or start the run with more data.clients"
            )
        return min(free)

    def _take_partition(self, given: PartitionGiven) -> None:
        if self._unused:
            self._partitions[given.name] = self._unused.pop()
        else:
            give_partition(self._partitions, given.name, given.index)

    def partition(self, name: str) -> int | None:
        """The data partition of a name, if it has one."""
        return self._partitions.get(name)

    def next_expiry(self) -> float:
        """When the next lease or held place runs out; infinity without any."""
        return min(self._next_lease(), self._awaited_until if self._awaited else math.inf)

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
