"""The round state machine: how rounds open, close, go on and draw their cohorts."""

from __future__ import annotations

from support_rounds import (
    DEADLINE,
    DIGEST,
    GRACE,
    LEASE,
    claim,
    join,
    make,
    opened,
    refused,
    renew_all,
    submit,
)

from common.errors import WrongRound
from server.events import (
    Assignment,
    Claimed,
    Closing,
    Finished,
    Interrupted,
    Missed,
    Opened,
    Phase,
    Wait,
)
from server.members import Parted
from server.rounds import Rounds


def test_opens_when_enough_clients_are_here() -> None:
    rounds = make(3)
    assert rounds.start(0.0) == ()
    assert join(rounds, "b") == () and join(rounds, "c") == ()
    outcome = rounds.outcome(0.0, "session-b")
    assert outcome == Wait("round 0: waiting for clients, 2 of 3 are here", 2, 3)
    assert join(rounds, "a") == (Opened(0, ("a", "b", "c")),)
    assert rounds.outcome(1.0, "session-b") == Assignment(0, 1, 3, DEADLINE - 1)


def test_closes_when_all_are_in_and_goes_on_until_the_last_round() -> None:
    rounds = opened(2, rounds=2)
    for t in range(2):
        assert submit(rounds, "a") == ()
        assert isinstance(rounds.outcome(1.0, "session-a"), Wait)
        assert submit(rounds, "b") == (Closing(t, ("a", "b")),)
        assert rounds.phase is Phase.CLOSING
        assert isinstance(rounds.outcome(1.0, "session-b"), Wait)
        effects = rounds.aggregated(2.0)
        assert effects == ((Opened(1, ("a", "b")),) if t == 0 else ())
    assert rounds.phase is Phase.FINISHED
    assert rounds.outcome(2.0, "session-a") == Finished(2)


def test_an_update_being_stored_holds_up_the_closing() -> None:
    rounds = opened(3, quorum=0.5)
    submit(rounds, "a")
    submit(rounds, "b")
    ticket = claim(rounds, "c")
    rounds.store(ticket)
    assert rounds.next_deadline() == LEASE, "the deadline must not make the timer spin"
    rounds.leave(2.0, "session-c")
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE + 1) == ()
    assert rounds.commit(DEADLINE + 2, ticket) == (Closing(0, tuple("abc")),)


def test_an_upload_does_not_hold_up_the_closing() -> None:
    rounds = opened(3, quorum=0.5)
    submit(rounds, "a")
    submit(rounds, "b")
    ticket = claim(rounds, "c")
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE) == (Missed(0, ("c",)), Closing(0, tuple("ab")))
    refused(rounds, WrongRound, lambda: rounds.store(ticket))


def test_cohorts_are_sampled_by_seed_and_round() -> None:
    def cohorts(order: str) -> list[tuple[str, ...]]:
        rounds = make(10, rounds=6, participation=0.25)
        rounds.start(0.0)
        drawn = []
        for name in order:
            drawn += [e.cohort for e in join(rounds, name) if isinstance(e, Opened)]
        for t in range(5):
            for name in rounds.cohort:
                submit(rounds, name)
            drawn += [e.cohort for e in rounds.aggregated(2.0) if isinstance(e, Opened)]
            assert rounds.round == t + 1
        return drawn

    drawn = cohorts("abcdefghij")
    assert drawn == cohorts("jihgfedcba"), "the order of joining does not matter"
    assert all(len(cohort) == 3 and list(cohort) == sorted(cohort) for cohort in drawn)
    assert len(set(drawn)) > 1


def resumed(earlier: Interrupted | None, **config: object) -> Rounds:
    rounds = make(3, round_=1, **config)
    rounds.members.await_return(0.0, earlier.cohort if earlier else "abc")
    rounds.start(0.0, earlier)
    return rounds


def test_resumed_round_waits_for_those_who_were_here() -> None:
    rounds = resumed(Interrupted(tuple("abc"), {"a": DIGEST, "b": DIGEST}, closing=False))
    assert (rounds.phase, rounds.submitted) == (Phase.OPEN, ("a", "b"))
    join(rounds, "a", 1.0)
    assert isinstance(rounds.outcome(1.0, "session-a"), Wait)
    assert rounds.claim("session-a", 1, (0, 3), DIGEST) is Claimed.DUPLICATE
    join(rounds, "c", 2.0)
    assert submit(rounds, "c", 3.0) == (Closing(1, tuple("abc")),)


def test_resumed_round_does_not_wait_for_ever() -> None:
    rounds = resumed(
        Interrupted(tuple("abc"), {"a": DIGEST, "b": DIGEST}, closing=False), quorum=0.6
    )
    assert rounds.next_deadline() == GRACE
    gone = [Parted(name, "it did not come back within 60 s") for name in "abc"]
    assert rounds.tick(GRACE) == (*gone, Closing(1, ("a", "b")))


def test_resumed_in_closing_it_closes_with_the_same_updates() -> None:
    earlier = Interrupted(tuple("abc"), {"a": DIGEST, "c": DIGEST}, closing=True)
    rounds = make(3, round_=1)
    assert rounds.start(0.0, earlier) == (Closing(1, ("a", "c")),)
    rounds.aggregated(1.0)
    assert rounds.round == 2


def test_resumed_between_rounds_it_draws_from_those_who_were_here() -> None:
    rounds = make(3, round_=1, min_clients=2)
    rounds.members.await_return(0.0, "abc")
    rounds.start(0.0)
    join(rounds, "a", 1.0)
    join(rounds, "b", 1.0)
    outcome = rounds.outcome(1.0, "session-a")
    assert isinstance(outcome, Wait) and "c to come back" in outcome.reason
    assert join(rounds, "c", 2.0) == (Opened(1, tuple("abc")),)
