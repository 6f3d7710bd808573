"""Who may submit what, and under which name: claims, tickets, sessions and partitions."""

from __future__ import annotations

from support_rounds import (
    DEADLINE,
    DIGEST,
    GRACE,
    LEASE,
    OTHER,
    claim,
    join,
    make,
    opened,
    refused,
    submit,
)

from common.errors import (
    AlreadyExists,
    Busy,
    NotInCohort,
    ProtocolError,
    SessionUnknown,
    WrongRound,
)
from server.events import Claimed, Closing, Opened, Phase
from server.members import Members, Parted, PartitionGiven
from server.rounds import Rounds


def test_refusals_of_claims() -> None:
    rounds = opened(3)
    place = (0, 3)
    for round_ in (1, 7):
        error = refused(
            rounds, WrongRound, lambda r=round_: rounds.claim("session-a", r, place, DIGEST)
        )
        assert isinstance(error, WrongRound) and error.current == 0
    refused(rounds, SessionUnknown, lambda: rounds.claim("nobody", 0, place, DIGEST))
    for wrong in ((1, 3), (0, 2), (0, 0)):
        refused(rounds, WrongRound, lambda p=wrong: rounds.claim("session-a", 0, p, DIGEST))
    join(rounds, "z")
    refused(rounds, NotInCohort, lambda: rounds.claim("session-z", 0, place, DIGEST))
    submit(rounds, "a")
    assert rounds.claim("session-a", 0, place, DIGEST) is Claimed.DUPLICATE
    refused(rounds, AlreadyExists, lambda: rounds.claim("session-a", 0, place, OTHER))
    for name in "bc":
        submit(rounds, name)
    assert rounds.phase is Phase.CLOSING
    assert rounds.claim("session-a", 0, place, DIGEST) is Claimed.DUPLICATE
    refused(rounds, AlreadyExists, lambda: rounds.claim("session-a", 0, place, OTHER))


def test_claims_outside_an_open_round_are_refused() -> None:
    rounds = make(3)
    rounds.start(0.0)
    join(rounds, "a")
    refused(rounds, WrongRound, lambda: rounds.claim("session-a", 0, (0, 1), DIGEST))
    done = make(3, round_=3)
    done.start(0.0)
    join(done, "a")
    refused(done, WrongRound, lambda: done.claim("session-a", 3, (0, 1), DIGEST))
    refused(done, ProtocolError, lambda: done.aggregated(0.0))


def test_a_newer_claim_takes_over_from_an_upload_but_not_from_a_store() -> None:
    rounds = opened(3)
    old, new = claim(rounds, "a", DIGEST), claim(rounds, "a", OTHER)
    refused(rounds, AlreadyExists, lambda: rounds.store(old))
    rounds.release(old)
    rounds.store(new)
    assert rounds.claim("session-a", 0, (0, 3), OTHER) is Claimed.STORING
    refused(rounds, AlreadyExists, lambda: rounds.claim("session-a", 0, (0, 3), DIGEST))
    refused(rounds, ProtocolError, lambda: rounds.commit(1.0, old))
    rounds.release(new)
    rounds.commit(1.0, new)
    refused(rounds, ProtocolError, lambda: rounds.commit(1.0, new))


def test_a_released_claim_may_be_made_again() -> None:
    rounds = opened(3)
    ticket = claim(rounds, "a")
    rounds.release(ticket)
    refused(rounds, AlreadyExists, lambda: rounds.store(ticket))
    submit(rounds, "a", digest=OTHER)
    assert rounds.submitted == ("a",)


def test_a_ticket_for_a_place_that_was_given_to_another_is_void() -> None:
    rounds = opened(3, quorum=1.0)
    submit(rounds, "a")
    late, kept = claim(rounds, "b"), claim(rounds, "c")
    join(rounds, "d")
    for name in "abcd":
        rounds.members.renew(DEADLINE - 1, f"session-{name}")
    rounds.tick(DEADLINE)
    assert rounds.cohort == ("a", "d", "c")
    error = refused(rounds, NotInCohort, lambda: rounds.store(late))
    assert "b is left out until round 2 because it missed a deadline" in str(error)
    rounds.release(late)
    refused(rounds, NotInCohort, lambda: rounds.claim("session-b", 0, (1, 3), DIGEST))
    rounds.store(kept)
    rounds.commit(DEADLINE + 1, kept)
    assert submit(rounds, "d", DEADLINE + 2) == (Closing(0, ("a", "d", "c")),)


def test_names_sessions_and_instances() -> None:
    rounds = make(3)
    rounds.start(0.0)
    for name in ("", "x" * 65, "a\nb"):
        refused(rounds, ProtocolError, lambda n=name: rounds.join(0, n, bytes(16), "s", False))
    refused(rounds, ProtocolError, lambda: rounds.join(0, "a", b"short", "s", False))
    join(rounds, "a")
    other = b"another instance"
    refused(rounds, AlreadyExists, lambda: rounds.join(1, "a", other, "s", False))
    rounds.join(1.0, "a", b"a".ljust(16), "new-session", False)
    refused(rounds, SessionUnknown, lambda: rounds.outcome(1.0, "session-a"))
    assert rounds.members.renew(2.0, "new-session") == "a"
    assert rounds.leave(2.0, "session-a") == ()
    rounds.join(2.0 + LEASE, "a", other, "s", False)
    assert rounds.members.live(12.0) == ("a",)


def test_partitions_are_sticky_and_run_out() -> None:
    rounds = make(2)
    rounds.start(0.0)
    assert PartitionGiven("b", 0) in join(rounds, "b", wants=True)
    assert join(rounds, "free") == (Opened(0, ("b", "free")),), "brought its own data"
    assert join(rounds, "a", wants=True) == (PartitionGiven("a", 1),)
    error = refused(rounds, Busy, lambda: join(rounds, "c", 1.0, wants=True))
    assert "all 2 data partitions are held, by a, b; bring other data" in str(error)
    rounds.leave(1.0, "session-b")
    assert not any(isinstance(e, PartitionGiven) for e in join(rounds, "b", 2.0, wants=True))
    assert (rounds.members.partition("b"), rounds.members.partition("free")) == (0, None)
    rounds.leave(3.0, "session-b")
    assert PartitionGiven("c", 0) in join(rounds, "c", 3.0, wants=True), "b is gone"
    refused(rounds, Busy, lambda: join(rounds, "b", 4.0, wants=True))


def test_after_a_restart_a_newcomer_is_told_whose_places_are_held_and_how_long() -> None:
    rounds = make(2, round_=1)
    members = Members(2, LEASE, GRACE, {"a": 0, "b": 1})
    rounds = Rounds(rounds._config, members, 1)
    members.await_return(0.0, "ab")
    rounds.start(0.0)
    error = refused(rounds, Busy, lambda: join(rounds, "new", 1.0, wants=True))
    assert str(error) == (
        "all 2 data partitions are held, by a, b; the server was restarted and waits 59 s for a, b"
    )
    join(rounds, "a", 2.0, wants=True)
    rounds.members.renew(9.0, "session-a")
    error = refused(rounds, Busy, lambda: join(rounds, "new", 15.0, wants=True))
    assert str(error).endswith("waits 45 s for b")
    for at in range(18, int(GRACE), 9):
        rounds.members.renew(float(at), "session-a")
    effects = join(rounds, "new", GRACE, wants=True)
    assert PartitionGiven("new", 1) in effects
    assert rounds.cohort == ("a", "new")


def test_a_newcomer_takes_the_place_of_one_whose_lease_ran_out() -> None:
    rounds = make(2, quorum=1.0)
    rounds.start(0.0)
    for name in "ab":
        join(rounds, name, wants=True)
    rounds.members.renew(9.0, "session-a")
    submit(rounds, "a", 9.0)
    rounds.tick(LEASE)
    assert rounds.members.awaited(LEASE) == ("b",)
    effects = join(rounds, "new", LEASE, wants=True)
    assert effects[:2] == (
        PartitionGiven("new", 1),
        Parted("b", "new has its data partition"),
    )
    assert rounds.cohort == ("a", "new"), "nobody waits for b any longer"
