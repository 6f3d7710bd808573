"""The round state machine under events in any order: no refusal changes anything."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support_rounds import DEADLINE, DIGEST, LEASE, OTHER, make

from common.errors import PrismError
from server.cohort import Stage
from server.events import Claimed, Closing, Effects, Missed, Opened, Phase, Replaced, Ticket


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
        self.opened = -1
        self.cohort: tuple[str, ...] = ()
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
            assert effect.round == self.opened + 1
            self.opened, self.cohort, self.durable = effect.round, effect.cohort, {}
        elif isinstance(effect, Missed):
            assert effect.names and set(effect.names) <= {*self.cohort} - self.durable.keys()
        elif isinstance(effect, Replaced):
            others, live = effect.others, self.rounds.members.live(self.now)
            assert others.keys().isdisjoint(self.durable) and set(others.values()) <= {*live}
            assert effect.cohort == tuple(others.get(name, name) for name in self.cohort)
            self.cohort = effect.cohort
        elif isinstance(effect, Closing):
            assert set(effect.clients) == set(self.durable)
            share = min(self.quorum * len(self.cohort), self.rounds.attendance.least)
            assert len(effect.clients) >= share - 1e-6

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
            if self.rounds._cohort.has(ticket, Stage.STORING):
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
        assert len(set(rounds.cohort)) == len(rounds.cohort)
        assert bool(rounds.cohort) == (rounds.phase in (Phase.OPEN, Phase.CLOSING))
        assert (rounds.phase is Phase.FINISHED) == (rounds.round == 4)
        assert rounds.describe(self.now)
        for name in rounds.members.live(self.now):
            rounds.outcome(self.now, self.session[name])

    @invariant()
    def figures_that_are_kept_are_those_that_counting_gives(self) -> None:
        rounds, members = self.rounds, self.rounds.members
        live = members.live(self.now)
        pending = [name for name in rounds.cohort if name not in rounds.submitted]
        assert list(rounds._cohort.pending) == pending
        gone = {name for name in pending if not members.here(name)}
        assert gone <= rounds._cohort._absent <= set(pending)
        assert rounds._cohort.missing == len(pending) - len(rounds._cohort._absent)
        assert rounds._cohort.received == len(rounds.submitted)
        stages = [rounds._cohort.stage(name) for name in rounds.cohort]
        assert rounds._cohort.storing == stages.count(Stage.STORING)
        assert members.count == len(live)
        expiries = [members._members[name].expires for name in live]
        expiries += members._awaited.values()
        assert members.next_expiry() == min(expiries, default=math.inf)


AnyOrderOfEvents.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


test_any_order_of_events = AnyOrderOfEvents.TestCase
