"""The round state machine: its transitions, its refusals, and that a refusal changes nothing."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support import tiny_config

from common.errors import (
    AlreadyExists,
    NotInCohort,
    PrismError,
    ProtocolError,
    RunMismatch,
    SessionUnknown,
    WrongRound,
)
from server.events import (
    Assignment,
    Claimed,
    Closing,
    Discarded,
    Effects,
    Finished,
    Interrupted,
    Opened,
    Ticket,
    Wait,
)
from server.members import REJOIN_SECONDS, Members, Parted, PartitionGiven
from server.rounds import Phase, Rounds

LEASE, DEADLINE = 10.0, 100.0
DIGEST, OTHER = b"d" * 32, b"o" * 32


def make(clients: int = 3, round_: int = 0, rounds: int = 3, **round_config: object) -> Rounds:
    limits = {"lease_seconds": LEASE, "deadline_seconds": DEADLINE, **round_config}
    config = tiny_config(rounds=rounds, data={"clients": clients}, round=limits)
    return Rounds(config, Members(clients, LEASE, {}), round_)


def join(rounds: Rounds, name: str, now: float = 0.0, wants: bool = False) -> Effects:
    return rounds.join(now, name, name.encode().ljust(16), f"session-{name}", wants)


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


def test_opens_when_enough_clients_are_here() -> None:
    rounds = make(3)
    assert rounds.start(0.0) == ()
    assert join(rounds, "b") == () and join(rounds, "c") == ()
    outcome = rounds.outcome(0.0, "session-b")
    assert outcome == Wait("round 0: waiting for clients, 2 of 3 are here", 2, 3)
    assert join(rounds, "a") == (Opened(0, 0, ("a", "b", "c")),)
    assert rounds.outcome(1.0, "session-b") == Assignment(0, 1, 3, DEADLINE - 1)


def test_closes_when_all_are_in_and_goes_on_until_the_last_round() -> None:
    rounds = opened(2, rounds=2)
    for t in range(2):
        assert submit(rounds, "a") == ()
        assert isinstance(rounds.outcome(1.0, "session-a"), Wait)
        assert submit(rounds, "b") == (Closing(t, 0, ("a", "b")),)
        assert rounds.phase is Phase.CLOSING
        assert isinstance(rounds.outcome(1.0, "session-b"), Wait)
        effects = rounds.aggregated(2.0)
        assert effects == ((Opened(1, 0, ("a", "b")),) if t == 0 else ())
    assert rounds.phase is Phase.FINISHED
    assert rounds.outcome(2.0, "session-a") == Finished(2)


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
    assert rounds.commit(DEADLINE + 2, ticket) == (Closing(0, 0, tuple("abc")),)


def test_an_upload_does_not_hold_up_the_closing() -> None:
    rounds = opened(3, quorum=0.5)
    submit(rounds, "a")
    submit(rounds, "b")
    ticket = claim(rounds, "c")
    renew_all(rounds, DEADLINE - 1)
    assert rounds.tick(DEADLINE) == (Closing(0, 0, tuple("ab")),)
    refused(rounds, WrongRound, lambda: rounds.store(ticket))


def test_cohorts_are_sampled_by_seed_round_and_attempt() -> None:
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


def test_a_ticket_of_an_earlier_attempt_is_void() -> None:
    rounds = opened(3)
    ticket = claim(rounds, "a")
    rounds.store(ticket)
    rounds.commit(1.0, ticket)
    late = claim(rounds, "b")
    renew_all(rounds, DEADLINE - 1)
    rounds.tick(DEADLINE)
    assert rounds.attempt == 1
    refused(rounds, WrongRound, lambda: rounds.store(late))
    rounds.release(late)
    assert rounds.submitted == ()


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
    assert join(rounds, "free") == (Opened(0, 0, ("b", "free")),), "brought its own data"
    assert join(rounds, "a", wants=True) == (PartitionGiven("a", 1),)
    refused(rounds, RunMismatch, lambda: join(rounds, "c", 1.0, wants=True))
    rounds.leave(1.0, "session-b")
    assert not any(isinstance(e, PartitionGiven) for e in join(rounds, "b", 2.0, wants=True))
    assert (rounds.members.partition("b"), rounds.members.partition("free")) == (0, None)
    rounds.leave(3.0, "session-b")
    assert PartitionGiven("c", 0) in join(rounds, "c", 3.0, wants=True), "b is gone"
    refused(rounds, RunMismatch, lambda: join(rounds, "b", 4.0, wants=True))


def resumed(earlier: Interrupted | None, attempt: int = 0, **config: object) -> Rounds:
    rounds = make(3, round_=1, **config)
    rounds.members.await_return(0.0, earlier.cohort if earlier else "abc")
    rounds.start(0.0, attempt, earlier)
    return rounds


def test_resumed_round_waits_for_those_who_were_here() -> None:
    rounds = resumed(Interrupted(tuple("abc"), {"a": DIGEST, "b": DIGEST}, closing=False))
    assert (rounds.phase, rounds.submitted) == (Phase.OPEN, ("a", "b"))
    join(rounds, "a", 1.0)
    assert isinstance(rounds.outcome(1.0, "session-a"), Wait)
    assert rounds.claim("session-a", 1, (0, 3), DIGEST) is Claimed.DUPLICATE
    join(rounds, "c", 2.0)
    assert submit(rounds, "c", 3.0) == (Closing(1, 0, tuple("abc")),)


def test_resumed_round_does_not_wait_for_ever() -> None:
    rounds = resumed(
        Interrupted(tuple("abc"), {"a": DIGEST, "b": DIGEST}, closing=False), quorum=0.6
    )
    assert rounds.next_deadline() == REJOIN_SECONDS
    assert rounds.tick(REJOIN_SECONDS) == (Closing(1, 0, ("a", "b")),)


def test_resumed_in_closing_it_closes_with_the_same_updates() -> None:
    earlier = Interrupted(tuple("abc"), {"a": DIGEST, "c": DIGEST}, closing=True)
    rounds = make(3, round_=1)
    assert rounds.start(0.0, 2, earlier) == (Closing(1, 2, ("a", "c")),)
    rounds.aggregated(1.0)
    assert (rounds.round, rounds.attempt) == (2, 0)


def test_resumed_between_rounds_it_draws_from_those_who_were_here() -> None:
    rounds = make(3, round_=1, min_clients=2)
    rounds.members.await_return(0.0, "abc")
    rounds.start(0.0)
    join(rounds, "a", 1.0)
    join(rounds, "b", 1.0)
    outcome = rounds.outcome(1.0, "session-a")
    assert isinstance(outcome, Wait) and "c to come back" in outcome.reason
    assert join(rounds, "c", 2.0) == (Opened(1, 0, tuple("abc")),)


@dataclass(frozen=True)
class _Attempt:
    round: int
    attempt: int


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever comes in whatever order: refusals change nothing, rounds keep their promises."""

    names = st.sampled_from("abcdef")

    @initialize(
        min_clients=st.integers(1, 4),
        quorum=st.sampled_from([0.1, 0.5, 0.8, 1.0]),
        participation=st.sampled_from([0.4, 1.0]),
    )
    def begin(self, min_clients: int, quorum: float, participation: float) -> None:
        self.rounds = make(
            4, rounds=4, min_clients=min_clients, quorum=quorum, participation=participation
        )
        self.quorum, self.now, self.sessions = quorum, 0.0, 0
        self.session: dict[str, str] = {}
        self.tickets: list[Ticket] = []
        self.history: list[_Attempt] = []
        self.durable: dict[str, bytes] = {}
        self.event(lambda: self.rounds.start(self.now))

    def event(self, call: Callable[[], Effects | Ticket | Claimed | None]) -> object:
        before = pickle.dumps(self.rounds)
        try:
            result = call()
        except PrismError:
            assert pickle.dumps(self.rounds) == before
            return None
        for effect in result if isinstance(result, tuple) else ():
            self.check(effect)
        return result

    def check(self, effect: object) -> None:
        if isinstance(effect, Opened):
            attempt = _Attempt(effect.round, effect.attempt)
            last = self.history[-1] if self.history else _Attempt(0, -1)
            assert attempt in (
                _Attempt(last.round, last.attempt + 1),
                _Attempt(last.round + 1, 0),
            )
            self.history.append(attempt)
            self.durable = {}
        elif isinstance(effect, Closing):
            assert set(effect.clients) == set(self.durable)
            assert len(effect.clients) >= self.quorum * len(self.rounds.cohort) - 1e-6
        elif isinstance(effect, Discarded):
            assert effect.received == len(self.durable) < effect.needed

    @rule(name=names, wants=st.booleans(), same=st.booleans())
    def join(self, name: str, wants: bool, same: bool) -> None:
        self.sessions += 1
        session = f"s{self.sessions}"
        instance = (name if same else name.upper()).encode().ljust(16)
        if self.event(lambda: self.rounds.join(self.now, name, instance, session, wants)) is None:
            return
        self.session[name] = session

    @rule(name=names)
    def leave(self, name: str) -> None:
        self.event(lambda: self.rounds.leave(self.now, self.session.get(name, "?")))

    @rule(name=names)
    def renew(self, name: str) -> None:
        def call() -> None:
            self.rounds.members.renew(self.now, self.session.get(name, "?"))

        self.event(call)

    @rule(name=names, digest=st.sampled_from([DIGEST, OTHER]), off=st.sampled_from([0, 0, 0, 1]))
    def claim(self, name: str, digest: bytes, off: int) -> None:
        cohort = self.rounds.cohort
        place = (cohort.index(name) if name in cohort else 0, len(cohort) + off)
        result = self.event(
            lambda: self.rounds.claim(self.session.get(name, "?"), self.rounds.round, place, digest)
        )
        if isinstance(result, Ticket):
            self.tickets.append(result)
        elif result is Claimed.DUPLICATE:
            assert self.durable[name] == digest

    @rule(index=st.integers(0, 5))
    def one_of_the_cohort_submits(self, index: int) -> None:
        """All of it at once, so that rounds close often enough."""
        if self.rounds.phase is not Phase.OPEN:
            return
        name = self.rounds.cohort[index % len(self.rounds.cohort)]
        if name not in self.rounds.members.live(self.now):
            self.join(name, wants=False, same=True)
        before = len(self.tickets)
        self.claim(name, DIGEST, 0)
        for ticket in self.tickets[before:]:
            self.event(lambda t=ticket: self.rounds.store(t))
            self.finish(ticket)

    def finish(self, ticket: Ticket) -> None:
        def call() -> Effects:
            slot = self.rounds._slots.get(ticket.name)
            if slot and slot.ticket == ticket and slot.stage == "storing":
                self.durable[ticket.name] = ticket.digest
            return self.rounds.commit(self.now, ticket)

        self.event(call)

    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        if self.tickets:
            ticket = data.draw(st.sampled_from(self.tickets))
            self.event(lambda: self.rounds.store(ticket))

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        if self.tickets:
            self.finish(data.draw(st.sampled_from(self.tickets)))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.tickets:
            ticket = data.draw(st.sampled_from(self.tickets))
            self.event(lambda: self.rounds.release(ticket))

    @rule(seconds=st.sampled_from([0.5, 3.0, LEASE, DEADLINE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.event(lambda: self.rounds.tick(self.now))

    @rule()
    def aggregated(self) -> None:
        self.event(lambda: self.rounds.aggregated(self.now))

    @invariant()
    def is_consistent(self) -> None:
        rounds = self.rounds
        assert set(rounds.submitted) <= set(rounds.cohort)
        assert bool(rounds.cohort) == (rounds.phase in (Phase.OPEN, Phase.CLOSING))
        assert (rounds.phase is Phase.FINISHED) == (rounds.round == 4)
        assert rounds.describe(self.now)
        for name in rounds.members.live(self.now):
            rounds.outcome(self.now, self.session[name])


AnyOrderOfEvents.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_any_order_of_events = AnyOrderOfEvents.TestCase
