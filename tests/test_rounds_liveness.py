"""Deadlines, quorums and clients that leave: every round ends, and those who are late are named."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from support_rounds import DEADLINE, GRACE, LEASE, join, make, opened, renew_all, submit

from server.attendance import LONGEST_ROUNDS, Absence
from server.events import Assignment, Closing, Interrupted, Missed, Opened, Phase, Replaced, Wait
from server.members import Parted
from server.rounds import Rounds


@pytest.mark.parametrize(
    ("quorum", "min_clients", "received", "closes"),
    [
        (0.5, 4, 2, True),
        (0.6, 4, 2, False),
        (0.6, 4, 3, True),
        (1.0, 4, 3, False),
        (0.01, 1, 0, False),
        # Nobody else is here to ask, and a round may open with so few.
        (0.8, 2, 3, True),
        (1.0, 2, 2, True),
        (1.0, 2, 1, False),
    ],
)
def test_deadline_closes_with_a_quorum_or_when_nobody_else_could_be_asked(
    quorum: float, min_clients: int, received: int, closes: bool
) -> None:
    rounds = opened(4, quorum=quorum, min_clients=min_clients, start_clients=4)
    names, late = tuple("abcd"[:received]), tuple("abcd"[received:])
    for name in names:
        submit(rounds, name)
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE - 0.001) == ()
    effects = rounds.tick(DEADLINE)
    assert effects == (Missed(0, late), *([Closing(0, names)] if closes else []))
    if not closes:
        assert rounds.submitted == names, "what is in stays in"
        assert rounds.next_deadline() < 2 * DEADLINE
        assert isinstance(rounds.outcome(DEADLINE, "session-d"), Assignment), "welcome still"


def test_by_default_three_of_four_close_at_the_deadline_and_then_do_not_wait() -> None:
    rounds = opened(4, rounds=3)
    for name in "abc":
        submit(rounds, name)
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE) == (Missed(0, ("d",)), Closing(0, tuple("abc")))
    assert rounds.aggregated(DEADLINE) == (Opened(1, tuple("abc")),)
    assert dict(rounds.attendance.absences) == {"d": Absence(1, 0)}
    outcome = rounds.outcome(DEADLINE, "session-d")
    assert isinstance(outcome, Wait)
    assert outcome.reason.startswith("left out until round 2 because it missed a deadline; round")
    for name in "abc":
        effects = submit(rounds, name, DEADLINE + 1)
    assert effects == (Closing(1, tuple("abc")),)
    assert rounds.aggregated(DEADLINE + 2) == (Opened(2, tuple("abcd")),), "back by itself"
    submit(rounds, "d", DEADLINE + 3)
    for name in "abc":
        effects = submit(rounds, name, DEADLINE + 4)
    assert effects == (Closing(2, tuple("abcd")),)
    assert not rounds.attendance.absences


def test_who_stays_silent_is_left_out_ever_longer() -> None:
    rounds = opened(4, rounds=100)
    now, asked = 0.0, []
    while rounds.round < 80:
        if "d" in rounds.cohort:
            asked.append(rounds.round)
        for name in "abc":
            submit(rounds, name, now)
        if rounds.phase is Phase.OPEN:
            renew_all(rounds, now + DEADLINE - 1)
            now += DEADLINE
            assert isinstance(rounds.tick(now)[-1], Closing)
        rounds.aggregated(now)
    assert asked[:5] == [0, 2, 5, 10, 19]
    assert {b - a for a, b in pairwise(asked[4:])} == {LONGEST_ROUNDS + 1}


def test_with_too_few_others_those_who_were_left_out_are_asked() -> None:
    rounds = opened(4, rounds=9, min_clients=4)
    for name in "ab":
        submit(rounds, name)
    renew_all(rounds, DEADLINE - 1)
    rounds.tick(DEADLINE)
    assert rounds.aggregated(DEADLINE) == (Opened(1, tuple("abcd")),)


def test_below_a_quorum_others_take_the_places_once() -> None:
    rounds = make(4, quorum=1.0, participation=0.5)
    rounds.start(0.0)
    for name in "abcd":
        join(rounds, name)
    first, second = rounds.cohort
    other = next(name for name in "abcd" if name not in rounds.cohort)
    submit(rounds, first)
    renew_all(rounds, DEADLINE - 1)
    missed, replaced = rounds.tick(DEADLINE)
    assert missed == Missed(0, (second,))
    assert isinstance(replaced, Replaced) and replaced.draw == 1
    assert replaced.cohort[0] == first and replaced.others.keys() == {second}
    new = replaced.others[second]
    assert rounds.outcome(DEADLINE, f"session-{new}") == Assignment(0, 1, 2, DEADLINE)
    assert isinstance(rounds.outcome(DEADLINE, f"session-{second}"), Wait)
    renew_all(rounds, 2 * DEADLINE - 1)
    assert rounds.tick(2 * DEADLINE) == (Missed(0, (new,)), Closing(0, (first,))), other
    assert rounds.attendance.absences.keys() == {second, new}


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
    assert rounds.tick(DEADLINE)[1:] == (Closing(0, tuple(names[:3])),)


@pytest.mark.parametrize(
    ("participation", "oversampling", "asked", "enough"),
    [(1.0, 1.25, 10, 8), (0.5, 1.0, 5, 5), (0.5, 1.25, 7, 5), (0.5, 4, 10, 2), (0.1, 1.5, 2, 1)],
)
def test_an_oversampled_round_closes_once_enough_are_in(
    participation: float, oversampling: float, asked: int, enough: int
) -> None:
    rounds = opened(10, participation=participation, oversampling=oversampling)
    cohort = rounds.cohort
    assert len(cohort) == asked
    for name in cohort[: enough - 1]:
        assert submit(rounds, name) == ()
    assert submit(rounds, cohort[enough - 1]) == (Closing(0, cohort[:enough]),)
    assert not rounds.attendance.absences, "who was not needed missed nothing"


@pytest.mark.parametrize("how", ["leaves", "lease"])
def test_those_who_are_gone_do_not_hold_up_the_round(how: str) -> None:
    rounds = opened(5, quorum=0.8)
    for name in "abc":
        submit(rounds, name)
    for name in "abcd":
        rounds.members.renew(9.0, f"session-{name}")
    if how == "leaves":
        assert rounds.leave(9.0, "session-e") == (Parted("e", "left"),)
        assert submit(rounds, "d", 11.0) == (Closing(0, tuple("abcd")),)
        return
    assert rounds.tick(LEASE) == (Parted("e", "its lease ran out"),)
    assert submit(rounds, "d", 11.0) == (), "it may yet come back"
    for at in range(11, int(LEASE + GRACE), 8):
        for name in "abcd":
            rounds.members.renew(float(at), f"session-{name}")
    assert rounds.next_deadline() <= LEASE + GRACE
    assert rounds.tick(LEASE + GRACE) == (
        Parted("e", "it did not come back within 60 s"),
        Closing(0, tuple("abcd")),
    )


def test_who_comes_back_within_the_grace_period_is_in_the_round() -> None:
    rounds = opened(2, quorum=0.5)
    rounds.members.renew(9.0, "session-a")
    submit(rounds, "a", 9.0)
    rounds.tick(LEASE)
    join(rounds, "b", LEASE + 5)
    rounds.members.renew(LEASE + 5, "session-a")
    assert submit(rounds, "b", LEASE + 6) == (Closing(0, ("a", "b")),)


def test_a_client_that_is_gone_for_good_costs_one_wait() -> None:
    """The quorum does not need it: the round closes, and the next opens without it."""
    rounds = opened(2, quorum=0.5)
    submit(rounds, "a")
    for at in range(9, int(DEADLINE), 9):
        rounds.members.renew(float(at), "session-a")
    assert rounds.tick(LEASE) == (Parted("b", "its lease ran out"),)
    assert rounds.tick(LEASE + GRACE)[-1] == Closing(0, ("a",))
    assert rounds.aggregated(LEASE + GRACE) == (Opened(1, ("a",)),)


def test_the_last_to_leave_closes_the_round() -> None:
    rounds = opened(5, quorum=0.8)
    for name in "abcd":
        submit(rounds, name)
    assert rounds.leave(2.0, "session-e") == (Parted("e", "left"), Closing(0, tuple("abcd")))


def test_below_quorum_it_waits_for_the_gone_until_the_deadline() -> None:
    rounds = opened(3, quorum=0.8)
    submit(rounds, "a")
    submit(rounds, "b")
    rounds.leave(2.0, "session-c")
    assert rounds.phase is Phase.OPEN
    join(rounds, "c", 3.0)
    assert isinstance(rounds.outcome(3.0, "session-c"), Assignment), "still in the cohort"
    assert submit(rounds, "c", 4.0) == (Closing(0, tuple("abc")),)


def test_below_quorum_those_who_are_gone_are_replaced_at_once() -> None:
    rounds = opened(3, quorum=0.8)
    submit(rounds, "a")
    rounds.leave(2.0, "session-c")
    assert join(rounds, "d", 3.0) == (), "b is here and may yet fill the quorum"
    assert submit(rounds, "b", 4.0) == (Replaced(0, 1, tuple("abd"), {"c": "d"}),)
    assert not rounds.attendance.absences, "c missed no deadline"
    assert submit(rounds, "d", 5.0) == (Closing(0, tuple("abd")),)


def test_with_nobody_left_it_keeps_what_is_in_and_waits() -> None:
    rounds = opened(3, min_clients=2, start_clients=3)
    submit(rounds, "a")
    effects = rounds.tick(DEADLINE)
    assert {type(effect) for effect in effects} == {Parted, Missed}
    assert (rounds.phase, rounds.submitted) == (Phase.OPEN, ("a",))
    assert not any(isinstance(effect, Missed) for effect in rounds.tick(2 * DEADLINE))
    assert rounds.attendance.absences["b"] == Absence(1, 0), "one round, one miss"
    join(rounds, "c", 2 * DEADLINE + 1)
    assert submit(rounds, "c", 2 * DEADLINE + 2) == (Closing(0, ("a", "c")),)


def test_the_first_round_waits_for_more_than_later_ones() -> None:
    rounds = make(3)
    rounds.start(0.0)
    for name in "ab":
        join(rounds, name)
    assert rounds.describe(0.0) == "round 0: waiting for clients, 2 of 3 are here"
    later = make(3, round_=1)
    later.members.await_return(0.0, "abc")
    later.start(0.0)
    join(later, "a", 1.0)
    assert later.describe(1.0) == "round 1: waiting for clients, 1 of 2 are here; missing: b, c"
    join(later, "b", 2.0)
    assert later.describe(2.0) == "round 1: waiting for c to come back"
    renew_all(later, GRACE - 1)
    assert later.tick(GRACE)[-1] == Opened(1, ("a", "b"))


def test_absences_survive_a_restart() -> None:
    fresh = make(4, rounds=9)
    rounds = Rounds(fresh._config, fresh.members, 5, {"d": Absence(3, 4)})
    rounds.start(0.0, Interrupted(tuple("abc"), {}, closing=False))
    join(rounds, "d")
    outcome = rounds.outcome(0.0, "session-d")
    assert isinstance(outcome, Wait)
    assert "until round 9 because it missed 3 deadlines in a row" in outcome.reason


def test_absences_of_those_who_are_gone_for_good_are_forgotten() -> None:
    rounds = opened(2, rounds=200, quorum=0.5)
    submit(rounds, "a")
    renew_all(rounds, DEADLINE - 1)
    rounds.tick(DEADLINE)
    rounds.leave(DEADLINE, "session-b")
    while rounds.phase is not Phase.FINISHED and rounds.round < 100:
        rounds.aggregated(DEADLINE)
        submit(rounds, "a", DEADLINE)
    assert math.isfinite(rounds.round) and not rounds.attendance.absences


def test_who_is_left_out_is_asked_when_nobody_else_is_there() -> None:
    """Two miss a round and are left out of the next, in which the other two die."""
    rounds = opened(4)
    for name in "cd":
        submit(rounds, name)
    now = DEADLINE
    renew_all(rounds, now - 1)
    rounds.tick(now)
    assert rounds.phase is Phase.CLOSING
    rounds.aggregated(now)
    assert rounds.cohort == ("c", "d")
    end = now + 3 * (DEADLINE + GRACE + LEASE)
    while rounds.round == 1 and now < end:
        now += LEASE / 3
        for name in "ab":
            rounds.members.renew(now, f"session-{name}")
            if isinstance(rounds.outcome(now, f"session-{name}"), Assignment):
                submit(rounds, name, now)
        rounds.tick(now)
        if rounds.phase is Phase.CLOSING:
            rounds.aggregated(now)
    assert rounds.round == 2
