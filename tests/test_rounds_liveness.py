"""Deadlines, quorums and clients that leave: a round ends, or is run again."""

from __future__ import annotations

import math

import pytest
from support_rounds import DEADLINE, LEASE, join, make, opened, renew_all, submit

from server.events import Assignment, Closing, Discarded, Opened
from server.members import Parted
from server.rounds import Phase


@pytest.mark.parametrize(
    ("quorum", "received", "closes"),
    [(0.5, 2, True), (0.6, 2, False), (0.6, 3, True), (1.0, 3, False), (0.01, 0, False)],
)
def test_deadline_closes_with_quorum_and_reruns_without(
    quorum: float, received: int, closes: bool
) -> None:
    rounds = opened(4, quorum=quorum)
    for name in "abc"[:received]:
        submit(rounds, name)
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE - 0.001) == ()
    effects = rounds.tick(DEADLINE)
    if closes:
        assert effects == (Closing(0, 0, tuple("abc"[:received])),)
        return
    needed = max(1, math.ceil(quorum * 4))
    assert effects == (Discarded(0, 0, received, needed), Opened(0, 1, tuple("abcd")))
    assert rounds.submitted == ()
    assert isinstance(rounds.outcome(DEADLINE, "session-a"), Assignment)


def test_quorum_is_blind_to_floating_point_noise() -> None:
    # 0.1 * 30 is 3.0000000000000004.
    names = [f"n{i:02d}" for i in range(30)]
    rounds = make(30, quorum=0.1)
    rounds.start(0.0)
    for name in names:
        join(rounds, name)
    for name in names[:3]:
        submit(rounds, name)
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE) == (Closing(0, 0, tuple(names[:3])),)


@pytest.mark.parametrize("how", ["leaves", "lease"])
def test_those_who_are_gone_do_not_hold_up_the_round(how: str) -> None:
    rounds = opened(5, quorum=0.8)
    for name in "abc":
        submit(rounds, name)
    for name in "abcd":
        rounds.members.renew(8.0, f"session-{name}")
    if how == "leaves":
        assert rounds.leave(8.0, "session-e") == (Parted("e", "left"),)
    else:
        assert rounds.tick(LEASE) == (Parted("e", "its lease ran out"),)
    assert rounds.phase is Phase.OPEN
    assert submit(rounds, "d", 11.0) == (Closing(0, 0, tuple("abcd")),)


def test_the_last_to_leave_closes_the_round() -> None:
    rounds = opened(5)
    for name in "abcd":
        submit(rounds, name)
    assert rounds.leave(2.0, "session-e") == (Parted("e", "left"), Closing(0, 0, tuple("abcd")))


def test_below_quorum_it_waits_for_the_gone_until_the_deadline() -> None:
    rounds = opened(3, quorum=0.8)
    submit(rounds, "a")
    submit(rounds, "b")
    rounds.leave(2.0, "session-c")
    assert rounds.phase is Phase.OPEN
    join(rounds, "c", 3.0)
    assert isinstance(rounds.outcome(3.0, "session-c"), Assignment), "still in the cohort"
    assert submit(rounds, "c", 4.0) == (Closing(0, 0, tuple("abc")),)


def test_below_quorum_it_starts_anew_when_the_gone_are_back_under_other_names() -> None:
    rounds = opened(3, quorum=0.8)
    submit(rounds, "a")
    rounds.leave(2.0, "session-c")
    assert join(rounds, "d", 3.0) == (), "b is here and may yet fill the quorum"
    assert submit(rounds, "b", 4.0) == (Discarded(0, 0, 2, 3), Opened(0, 1, tuple("abd")))
    assert rounds.submitted == ()


def test_below_quorum_and_below_min_clients_it_waits_again() -> None:
    rounds = opened(3)
    effects = rounds.tick(DEADLINE)
    assert {type(effect) for effect in effects} == {Parted, Discarded}
    assert (rounds.phase, rounds.attempt) == (Phase.WAITING, 1)
    for name in "ab":
        join(rounds, name, DEADLINE)
    assert join(rounds, "c", DEADLINE) == (Opened(0, 1, tuple("abc")),)
