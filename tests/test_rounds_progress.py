"""Rounds close in bounded time as long as enough clients answer, whatever the others do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support_rounds import DEADLINE, GRACE, LEASE, claim, join, make, submit

from server.events import Assignment, Phase
from server.rounds import Rounds

HONEST, OTHERS = "abcd", "uvwxyz"
STEP = 4.0
"""Seconds between two turns of the honest, whose leases are 10 s."""


def honest_turn(rounds: Rounds, names: str, now: float) -> None:
    """They are here and submit whatever they are asked for; closed rounds are aggregated."""
    for name in names:
        rounds.members.renew(now, f"session-{name}")
    rounds.tick(now)
    again = True
    while again:
        again = False
        for name in names:
            if isinstance(rounds.outcome(now, f"session-{name}"), Assignment):
                submit(rounds, name, now)
                again = True
        if rounds.phase is Phase.CLOSING:
            rounds.aggregated(now)
            return


def other_turn(rounds: Rounds, name: str, what: str, now: float) -> None:
    """Anything that one of the others may do."""
    here = name in rounds.members.live(now)
    if what == "join" or not here:
        join(rounds, name, now)
    elif what == "leave":
        rounds.leave(now, f"session-{name}")
    elif what == "renew":
        rounds.members.renew(now, f"session-{name}")
    elif isinstance(rounds.outcome(now, f"session-{name}"), Assignment):
        if what == "claim":
            claim(rounds, name)
        else:
            submit(rounds, name, now)
            if rounds.phase is Phase.CLOSING:
                rounds.aggregated(now)


@settings(deadline=None, max_examples=60)
@given(
    honest=st.integers(1, 4),
    quorum=st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    participation=st.sampled_from([0.5, 1.0, 1.0]),
    oversampling=st.sampled_from([1.0, 1.5]),
    turns=st.lists(
        st.tuples(
            st.sampled_from(OTHERS),
            st.sampled_from(["join", "leave", "renew", "claim", "submit", "nothing"]),
        ),
        min_size=20,
        max_size=200,
    ),
)
def test_rounds_close_within_few_deadlines(
    honest: int,
    quorum: float,
    participation: float,
    oversampling: float,
    turns: list[tuple[str, str]],
) -> None:
    names = HONEST[:honest]
    rounds = make(
        honest,
        rounds=1000,
        min_clients=honest,
        quorum=quorum,
        participation=participation,
        oversampling=oversampling,
    )
    rounds.start(0.0)
    for name in names:
        join(rounds, name)
    # Where only a share is asked, each of the others may be asked first, and cost a deadline.
    deadlines = 2 if participation == 1 else 2 + len(OTHERS)
    bound = GRACE + deadlines * DEADLINE + 2 * STEP
    now = closed_at = 0.0
    closed = 0
    for name, what in turns * 8:
        other_turn(rounds, name, what, now)
        honest_turn(rounds, names, now)
        if rounds.round > closed:
            closed, closed_at = rounds.round, now
        assert now - closed_at <= bound
        now += STEP
    assert STEP < LEASE and not rounds.attendance.absences.keys() & set(names)
