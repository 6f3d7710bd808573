"""Who is here: names, sessions, leases and data partitions. Pure, like `rounds`."""

from __future__ import annotations

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
        self._awaited: dict[str, float] = {}

    def await_return(self, now: float, names: Iterable[str]) -> None:
        """Hold the place of clients that were here before the server was restarted."""
        until = now + max(REJOIN_SECONDS, self.lease_seconds)
        self._awaited = dict.fromkeys(names, until)

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
            give_partition(self._partitions, name, partition.index)
        if held:
            del self._sessions[held.session]
        self._members[name] = _Member(session, instance, now + self.lease_seconds)
        self._sessions[session] = name
        self._awaited.pop(name, None)
        return given

    def leave(self, session: str) -> tuple[Parted, ...]:
        """End a session; unknown ones are gone already."""
        name = self._sessions.pop(session, None)
        if name is None:
            return ()
        del self._members[name]
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
        """Drop those whose lease has run out."""
        gone = [name for name, member in self._members.items() if member.expires <= now]
        for name in gone:
            del self._sessions[self._members.pop(name).session]
        self._awaited = {name: until for name, until in self._awaited.items() if until > now}
        return tuple(Parted(name, "its lease ran out") for name in gone)

    def name_of(self, session: str) -> str:
        """Whose session it is.

        Raises:
            SessionUnknown: nobody's.
        """
        name = self._sessions.get(session)
        if name is None:
            raise SessionUnknown("this session is unknown or has run out: join again")
        return name

    def live(self, now: float) -> tuple[str, ...]:
        """Names with a lease, sorted."""
        return tuple(sorted(n for n, member in self._members.items() if member.expires > now))

    def awaited(self, now: float) -> tuple[str, ...]:
        """Names that were here before a restart and may yet come back, sorted."""
        return tuple(sorted(n for n, until in self._awaited.items() if until > now))

    def _free_partition(self, now: float) -> int:
        """One that nobody was given, else one of a client that is gone."""
        every = set(range(self.partition_count))
        here = {name for name, member in self._members.items() if member.expires > now}
        here |= self._awaited.keys()
        held = {index for name, index in self._partitions.items() if name in here}
        free = (every - set(self._partitions.values())) or (every - held)
        if not free:
            raise RunMismatch(
                f"all {self.partition_count} partitions are held by clients that are here: "
                f"bring other data, or start the run with more data.clients"
            )
        return min(free)

    def partition(self, name: str) -> int | None:
        """The data partition of a name, if it has one."""
        return self._partitions.get(name)

    def next_expiry(self) -> float:
        """When the next lease or held place runs out; infinity without any."""
        leases = (member.expires for member in self._members.values())
        return min((*leases, *self._awaited.values()), default=math.inf)


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
