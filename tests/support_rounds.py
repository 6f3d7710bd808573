"""Short names for the events of a round, and a check that a refusal changes nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from support import tiny_config

from common.errors import PrismError
from server.events import Effects, Phase, Ticket
from server.members import Members
from server.rounds import Rounds

LEASE, DEADLINE, GRACE = 10.0, 100.0, 60.0
DIGEST, OTHER = b"d" * 32, b"o" * 32


def make(clients: int = 3, round_: int = 0, rounds: int = 3, **round_config: object) -> Rounds:
    limits = {
        "lease_seconds": LEASE,
        "deadline_seconds": DEADLINE,
        "grace_seconds": GRACE,
        **round_config,
    }
    config = tiny_config(rounds=rounds, data={"clients": clients}, round=limits)
    return Rounds(config, Members(clients, LEASE, config.grace_seconds, {}), round_)


def join(rounds: Rounds, name: str, now: float = 0.0, wants: bool = False) -> Effects:
    """A client joins, and asks for something to do."""
    session = f"session-{name}"
    effects = rounds.join(now, name, name.encode().ljust(16), session, wants)
    return (*effects, *rounds.ask(now, session))


def renew_all(rounds: Rounds, now: float) -> None:
    for name in rounds.members.live(0.0):
        rounds.members.renew(now, f"session-{name}")


def claim(rounds: Rounds, name: str, digest: bytes = DIGEST, round_: int | None = None) -> Ticket:
    place = (rounds.cohort.index(name), len(rounds.cohort))
    claimed = rounds.claim(
        f"session-{name}", rounds.round if round_ is None else round_, place, digest
    )
    assert isinstance(claimed, Ticket)
    return claimed


def submit(rounds: Rounds, name: str, now: float = 1.0, digest: bytes = DIGEST) -> Effects:
    ticket = claim(rounds, name, digest)
    rounds.store(ticket)
    return rounds.commit(now, ticket)


def opened(clients: int = 3, **config: object) -> Rounds:
    rounds = make(clients, **config)
    rounds.start(0.0)
    for name in "abcdefghij"[:clients]:
        join(rounds, name)
    assert rounds.phase is Phase.OPEN
    return rounds


def refused(rounds: Rounds, error: type[PrismError], event: Callable[[], object]) -> PrismError:
    """The event raises, and nothing at all has changed."""
    before = pickle.dumps(rounds)
    with pytest.raises(error) as raised:
        event()
    assert pickle.dumps(rounds) == before
    assert "\n" not in str(raised.value)
    return raised.value
