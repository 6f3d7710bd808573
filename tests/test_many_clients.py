"""What the server does for one client does not depend on how many there are."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import federation, tiny_config
from support_rounds import claim, join, make, submit

from common.rpc.prism.v1 import federation_pb2 as pb
from server.background import Wakeups
from server.events import Assignment, Phase, Wait
from server.progress import BETWEEN_SECONDS, Progress
from server.rounds import Rounds


def instructions(call: Callable[[], object]) -> int:
    """How many bytecode instructions a call executes, in itself and all that it calls."""
    executed = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal executed
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        executed += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return executed


def full(clients: int) -> Rounds:
    """An open round of that many clients, half of which have submitted and one has left."""
    rounds = make(clients, quorum=0.5)
    rounds.start(0.0)
    names = [f"n{i:05d}" for i in range(clients)]
    for name in names:
        join(rounds, name, wants=True)
    assert rounds.phase is Phase.OPEN
    for name in names[: clients // 2]:
        submit(rounds, name)
    rounds.leave(1.0, f"session-{names[-1]}")
    return rounds


def costs(clients: int) -> dict[str, int]:
    """What each kind of event and question costs in `full`."""
    rounds, last, first = full(clients), f"n{clients - 2:05d}", "session-n00000"
    done = {
        "renew": lambda: rounds.members.renew(1.0, first),
        "outcome": lambda: rounds.outcome(1.0, first),
        "claim": lambda: rounds.release(claim(rounds, last)),
        "submit": lambda: submit(rounds, last),
        "tick": lambda: rounds.tick(2.0),
        "deadline": lambda: rounds.next_deadline(),
        "describe": lambda: rounds.describe(2.0),
        "join again": lambda: join(rounds, "n00000"),
        "leave": lambda: rounds.leave(2.0, "session-n00001"),
    }
    return {name: instructions(call) for name, call in done.items()}


def test_an_event_costs_the_same_whatever_the_number_of_clients() -> None:
    few, many = costs(20), costs(2000)
    assert {name: many[name] / few[name] for name in few} == pytest.approx(
        dict.fromkeys(few, 1.0), rel=0.2
    )


def test_a_call_that_waits_is_woken_by_its_own_name() -> None:
    wakeups = Wakeups()
    ann, bob = wakeups.of("ann"), wakeups.of("bob")
    wakeups.wake("ann", "nobody")
    assert ann.is_set() and not bob.is_set()
    assert not wakeups.of("ann").is_set(), "only what comes later wakes it again"
    wakeups.wake_all()
    assert bob.is_set()


def test_others_updates_wake_no_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    outcome = Rounds.outcome

    def counted(rounds: Rounds, now: float, session: str) -> Any:
        asked.append(session)
        return outcome(rounds, now, session)

    async def main() -> None:
        async with federation(tmp_path, tiny_config(rounds=2)) as (ann, bob, cleo):
            await ann.submit(await ann.assignment())
            polls = [asyncio.create_task(ann.await_round()) for _ in range(2)]
            await bob.submit(await bob.assignment())
            monkeypatch.setattr(Rounds, "outcome", counted)
            await cleo.submit(await cleo.assignment())
            for poll in polls:
                assert (await poll).assignment.round == 1
            # Once each as the round opens, however many changes there were before.
            assert asked.count(ann.session) == 2

    asyncio.run(main())


def test_a_poll_ends_when_its_session_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, *_):
            await ann.join()
            old = ann.await_round()
            waiting = asyncio.create_task(old)
            await ann.join()
            with pytest.raises(Exception, match="join again"):
                await waiting
            waiting = asyncio.create_task(ann.await_round())
            await ann.leave()
            with pytest.raises(Exception, match="join again"):
                await waiting

    asyncio.run(main())


def test_status_of_many(tmp_path: Path) -> None:
    async def main() -> pb.GetStatusResponse:
        async with federation(tmp_path) as (ann, *_):
            await ann.submit(await ann.assignment())
            return await ann.status()

    said = asyncio.run(main()).clients
    assert [(c.name, c.in_cohort, c.submitted) for c in said] == [
        ("ann", True, True),
        ("bob", True, False),
        ("cleo", True, False),
    ]


def test_progress_is_not_told_of_each_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress()
    assert progress.say(0.0, "round 0: ann and 999 more") == math.inf
    assert progress.say(0.1, "round 0: bob and 998 more") == BETWEEN_SECONDS
    assert progress.say(0.2, "round 1: ann and 999 more") == math.inf, "another round is news"
    assert progress.say(0.3, "round 1: ann and 998 more") == 0.2 + BETWEEN_SECONDS
    later = 0.2 + BETWEEN_SECONDS
    assert progress.say(later, "round 1: dora") == progress.say(later, "round 1: dora") == math.inf
    assert [record.message for record in caplog.records] == [
        "round 0: ann and 999 more",
        "round 1: ann and 999 more",
        "round 1: dora",
    ]


def test_outcomes_of_a_large_round() -> None:
    rounds = full(200)
    wait = rounds.outcome(1.0, "session-n00000")
    assert isinstance(wait, Wait) and wait.live == 199
    assert wait.reason == "round 0: waiting for the update of n00100, n00101, n00102 and 97 more"
    assignment = rounds.outcome(1.0, "session-n00150")
    assert isinstance(assignment, Assignment)
    assert (assignment.rank, assignment.cohort_size) == (150, 200)
