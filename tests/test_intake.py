"""Updates on their way in: bounded, timed, and let go of at once when nobody wants them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support import (
    CODE,
    NAMES,
    RawClient,
    clients,
    federation,
    random_payload,
    refused,
    running,
    tiny_config,
)

from common.rpc.prism.v1 import federation_pb2 as pb
from server import intake
from server.app import Engine
from server.intake import STREAMS_PER_CLIENT, Budget


async def begun(client: RawClient, assignment: pb.Assignment, salt: str = "") -> Any:
    """An upload of which all but the last byte is sent."""
    payload = client.payload(assignment.round, salt)
    call = client.stub.SubmitUpdate(metadata=client.metadata)
    await call.write(pb.UpdateChunk(header=client.header(assignment, payload)))
    await call.write(pb.UpdateChunk(data=payload[:-1]))
    return call


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """The engines that servers make, to look into."""
    made: list[Engine] = []
    make = Engine.__init__

    def noted(engine: Engine, *args: Any, **kwargs: Any) -> None:
        make(engine, *args, **kwargs)
        made.append(engine)

    monkeypatch.setattr(Engine, "__init__", noted)
    return made


def test_a_newer_upload_ends_the_older_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            assignment = await ann.assignment()
            calls = {salt: await begun(ann, assignment, salt) for salt in "abc"}
            ends = {salt: asyncio.ensure_future(call.code()) for salt, call in calls.items()}
            # Whichever the server met last is left; the others end though they send no more.
            while len(left := [salt for salt, end in ends.items() if not end.done()]) > 1:
                await asyncio.wait(
                    [ends[salt] for salt in left], return_when=asyncio.FIRST_COMPLETED, timeout=20
                )
            (salt,) = left
            await calls[salt].write(pb.UpdateChunk(data=ann.payload(0, salt)[-1:]))
            await calls[salt].done_writing()
            assert not (await calls[salt]).duplicate
            codes = [await ends[other] for other in calls if other != salt]
            assert codes == [CODE.ALREADY_EXISTS] * 2

    asyncio.run(main())


@pytest.mark.parametrize("how", ["closed", "replaced", "left", "joined again"])
def test_an_upload_that_nobody_wants_ends_at_once(
    tmp_path: Path, how: str, engines: list[Engine]
) -> None:
    quorum = 0.5 if how == "closed" else 1.0
    config = tiny_config(round={"quorum": quorum, "deadline_seconds": 1.0 if quorum == 0.5 else 2})
    if how in ("left", "joined again"):
        config = tiny_config()

    async def main() -> None:
        async with federation(tmp_path, config) as (ann, bob, cleo):
            call = await begun(cleo, await cleo.assignment())
            if how in ("closed", "replaced"):
                for client in (ann, bob):
                    await client.submit(await client.assignment())
            if how == "replaced":
                dora = RawClient(config, ann.channel, "dora")
                await dora.join()
                await dora.await_round(0)
            elif how == "left":
                await cleo.leave()
            elif how == "joined again":
                await cleo.join()
            code, name = {
                "closed": (CODE.FAILED_PRECONDITION, "WrongRound"),
                "replaced": (CODE.PERMISSION_DENIED, "NotInCohort"),
            }.get(how, (CODE.UNAUTHENTICATED, "SessionUnknown"))
            error = await refused(call, code)
            said = dict(error.trailing_metadata() or ())
            assert said["prism-error"] == name
            (engine,) = engines
            assert engine.intake._budget._free == intake.BYTES
            assert not (engine.intake._reading or engine.intake._newest or engine.intake._streams)

    asyncio.run(main())


def test_a_silent_upload_ends_and_may_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "IDLE_SECONDS", 0.2)

    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            assignment = await ann.assignment()
            error = await refused(await begun(ann, assignment), CODE.UNAVAILABLE)
            assert "send it again" in (error.details() or "")
            assert not (await ann.submit(assignment)).duplicate

    asyncio.run(main())


def test_a_stream_without_a_header_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.service.IDLE_SECONDS", 0.2)

    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            error = await refused(ann.stub.SubmitUpdate(metadata=ann.metadata), CODE.UNAVAILABLE)
            assert "no header" in (error.details() or "")

    asyncio.run(main())


def test_one_client_has_so_many_streams_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, bob, _):
            silent = [
                ann.stub.SubmitUpdate(metadata=ann.metadata) for _ in range(STREAMS_PER_CLIENT)
            ]
            silent.append(ann.stub.SubmitUpdate(metadata=ann.metadata))
            # The server meets them in any order, and refuses the last.
            ends = {asyncio.ensure_future(call.code()): call for call in silent}
            (end,), _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            assert end.result() is CODE.RESOURCE_EXHAUSTED
            over = ends[end]
            said = dict(await over.trailing_metadata())
            assert said["prism-error"] == "Busy" and int(said["prism-retry-seconds"]) > 0
            await bob.submit(await bob.assignment())
            for call in silent:
                call.cancel()

    asyncio.run(main())


def test_what_is_over_the_budget_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BYTES", len(random_payload(tiny_config(), "ann", 0)))

    async def main() -> None:
        async with federation(tmp_path) as (ann, bob, cleo):
            first = await begun(ann, await ann.assignment())
            waiting = [
                asyncio.ensure_future(client.submit(await client.assignment()))
                for client in (bob, cleo)
            ]
            status = await ann.status()
            assert not any(client.submitted for client in status.clients)
            await first.write(pb.UpdateChunk(data=ann.payload(0)[-1:]))
            await first.done_writing()
            for call in (first, *waiting):
                assert not (await call).duplicate

    asyncio.run(main())


def test_whose_turn_does_not_come_is_asked_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BYTES", 1)
    monkeypatch.setattr(intake, "TURN_SECONDS", 0.2)

    async def main() -> None:
        async with federation(tmp_path) as (ann, bob, _):
            first = await begun(ann, await ann.assignment())
            assignment = await bob.assignment()
            error = await refused(bob.submit(assignment), CODE.RESOURCE_EXHAUSTED)
            assert ("prism-error", "Busy") in tuple(error.trailing_metadata() or ())
            first.cancel()
            while True:
                try:
                    await bob.submit(assignment)
                except Exception as again:
                    assert "try again" in str(again)
                else:
                    break

    asyncio.run(main())


def test_budget_serves_in_order_and_gets_everything_back() -> None:
    async def main() -> None:
        budget = Budget(10)
        assert await budget.take(6) == 6
        large = asyncio.ensure_future(budget.take(8))
        small = asyncio.ensure_future(budget.take(1))
        given_up = asyncio.ensure_future(budget.take(5))
        huge = asyncio.ensure_future(budget.take(1000))
        await asyncio.sleep(0)
        assert not (large.done() or small.done()), "small ones do not overtake for ever"
        given_up.cancel()
        budget.give(6)
        assert (await large, await small) == (8, 1)
        assert not huge.done()
        budget.give(8)
        budget.give(1)
        assert await huge == 10, "alone, even the largest has its turn"
        budget.give(10)
        assert budget._free == 10 and not budget._waiting

    asyncio.run(main())


def test_budget_of_one_who_gives_up_as_its_turn_comes() -> None:
    async def main() -> None:
        budget = Budget(10)
        await budget.take(10)
        turn, after = (asyncio.ensure_future(budget.take(10)) for _ in range(2))
        await asyncio.sleep(0)
        budget.give(10)
        turn.cancel()
        assert await after == 10

    asyncio.run(main())


def test_states_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()

    async def main() -> None:
        async with running(config, tmp_path) as address, clients(config, address, *NAMES) as all_:
            for client in all_:
                await client.join()
                await asyncio.sleep(0)
            made = 0
            encode = pb.StateChunk

            def counted(**fields: Any) -> pb.StateChunk:
                nonlocal made
                made += 1
                return encode(**fields)

            monkeypatch.setattr(pb, "StateChunk", counted)
            fetched = [await client.fetch(0) for client in all_ for _ in range(3)]
            monkeypatch.undo()
            header, data = fetched[0]
            assert all(other == (header, data) for other in fetched)
            assert made == 1 + -(-len(data) // 65536)

    asyncio.run(main())
