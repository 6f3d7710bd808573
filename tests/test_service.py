"""Joining and sessions on a real server on loopback, driven by raw stubs, status by status."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support import CODE, RawClient, federation, refused, snapshot, tiny_config

from common.config import load_config
from common.downlink import initial_state
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import GlobalState


def test_join_teaches_and_enrols(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, *_):
            taught = await ann.stub.Join(ann.join_request(fingerprint=None))
            assert abs(taught.unix_seconds - time.time()) < 5
            assert (taught.session, taught.fingerprint) == ("", ann.join_request().fingerprint)
            (tmp_path / "taught.toml").write_text(taught.config_toml)
            assert load_config(tmp_path / "taught.toml") == ann.config
            assert not (await ann.status()).clients
            reply = await ann.join()
            assert len(reply.session) >= 16 and reply.lease_seconds == 60
            assert [c.name for c in (await ann.status()).clients] == ["ann"]
            first = ann.session
            await ann.join()
            assert ann.session != first, "joining again replaces the session"
            ann.session = first
            await refused(ann.await_round(0), CODE.UNAUTHENTICATED)

    asyncio.run(main())


JOINS_REFUSED: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"protocol_version": 2}, CODE.FAILED_PRECONDITION, "protocol"),
    ({"fingerprint": {"seed": 7}}, CODE.FAILED_PRECONDITION, "seed"),
    ({"fingerprint": {"dimension": 9}}, CODE.FAILED_PRECONDITION, "9 parameters"),
    ({"fingerprint": {"weights_digest": bytes(32)}}, CODE.FAILED_PRECONDITION, "weights"),
    ({"fingerprint": {"tables_digest": bytes(32)}}, CODE.FAILED_PRECONDITION, "tables"),
    ({"fingerprint": {"run_id": bytes(32)}}, CODE.FAILED_PRECONDITION, "run"),
    ({"codecs": [pb.CODEC_INT16]}, CODE.FAILED_PRECONDITION, "CODEC_RAW"),
    ({"state_codecs": []}, CODE.FAILED_PRECONDITION, "STATE_CODEC_KEYFRAME"),
    ({"client_name": ""}, CODE.INVALID_ARGUMENT, "name"),
    ({"client_name": "x" * 65}, CODE.INVALID_ARGUMENT, "name"),
    ({"client_name": "a\nb"}, CODE.INVALID_ARGUMENT, "name"),
    ({"client_name": "x" * 100_000}, CODE.INVALID_ARGUMENT, "name"),
    ({"instance": b"short"}, CODE.INVALID_ARGUMENT, "16 bytes"),
    ({"client_name": "ann", "instance": bytes(16)}, CODE.ALREADY_EXISTS, "ann"),
]


@pytest.mark.parametrize(
    ("changes", "code", "says"), JOINS_REFUSED, ids=lambda value: str(value)[:40]
)
def test_join_refusals(
    tmp_path: Path, changes: dict[str, Any], code: grpc.StatusCode, says: str
) -> None:
    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, bob, _):
            await ann.join()
            before = await snapshot(ann, tmp_path)
            request = dict(changes)
            if "fingerprint" in changes:
                fields = {**asdict(bob.fingerprint), **changes["fingerprint"]}
                request["fingerprint"] = pb.Fingerprint(**fields)
            error = await refused(bob.join(**request), code)
            assert says in (error.details() or "")
            assert await snapshot(ann, tmp_path) == before

    asyncio.run(main())


def test_a_required_mechanism_keeps_out_who_lacks_it(tmp_path: Path) -> None:
    async def main() -> None:
        config = tiny_config(privacy={"mechanism": "moments", "require": True})
        async with federation(tmp_path, config, joined=False) as (ann, bob, _):
            for offered in ([], ["mask-noise"]):
                join = bob.join(privacy_mechanisms=offered)
                error = await refused(join, CODE.FAILED_PRECONDITION)
                assert "moments" in (error.details() or "")
            assert (await ann.join(privacy_mechanisms=["mask-noise", "moments"])).session

    asyncio.run(main())


def test_partitions_survive_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, bob, cleo):
            given = [(await c.join(wants_partition=True)).partition_index for c in (bob, ann)]
            assert given == [0, 1]
        async with federation(tmp_path, joined=False) as (ann, bob, cleo):
            replies = [await c.join(wants_partition=True) for c in (cleo, ann, bob)]
            assert [r.partition_index for r in replies] == [2, 1, 0]
            assert {r.partition_count for r in replies} == {3}
            dora = RawClient(ann.config, ann.channel, "dora")
            await refused(dora.join(wants_partition=True), CODE.RESOURCE_EXHAUSTED)
            await dora.join()
            # What a client that is gone held goes to one that needs it.
            await ann.leave()
            assert (await dora.join(wants_partition=True)).partition_index == 1
            await refused(ann.join(wants_partition=True), CODE.RESOURCE_EXHAUSTED)

    asyncio.run(main())


def test_every_call_but_two_needs_a_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, bob, _):
            assignment = await ann.assignment()
            before = await snapshot(bob, tmp_path)
            for session in ("", "made up"):
                ann.session = session
                heartbeat = ann.stub.Heartbeat(pb.HeartbeatRequest(), metadata=ann.metadata)
                await refused(ann.await_round(0), CODE.UNAUTHENTICATED)
                await refused(ann.fetch(0), CODE.UNAUTHENTICATED)
                await refused(ann.submit(assignment), CODE.UNAUTHENTICATED)
                await refused(heartbeat, CODE.UNAUTHENTICATED)
                await ann.leave()
                await ann.status()
            assert await snapshot(bob, tmp_path) == before

    asyncio.run(main())


def test_a_silent_client_loses_its_lease(tmp_path: Path) -> None:
    config = tiny_config(round={"lease_seconds": 0.4})

    async def main() -> None:
        async with federation(tmp_path, config, joined=False) as (ann, bob, _):
            await ann.join()
            await bob.join()
            # Polling alone keeps a lease, however long the poll asks to wait.
            while len((await bob.status()).clients) > 1:
                assert (await bob.await_round(60)).HasField("wait")
            assert [c.name for c in (await bob.status()).clients] == ["bob"]
            await refused(ann.await_round(0), CODE.UNAUTHENTICATED)

    asyncio.run(main())


def test_await_round_answers_when_there_is_something_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, bob, cleo):
            await ann.join()
            reply = await ann.await_round(0)
            assert "1 of 3" in reply.wait.reason
            assert (reply.wait.live_clients, reply.wait.min_clients) == (1, 3)
            await refused(ann.await_round(-1), CODE.INVALID_ARGUMENT)
            await refused(ann.await_round(float("nan")), CODE.INVALID_ARGUMENT)
            poll = asyncio.create_task(ann.await_round(20))
            await bob.join()
            await cleo.join()
            assignment = (await poll).assignment
            assert (assignment.round, assignment.rank, assignment.cohort_size) == (0, 0, 3)
            assert 0 < assignment.deadline_seconds <= 60
            assert assignment.state_digest == initial_state(ann.config).digest()
            await ann.submit(assignment)
            assert "bob, cleo" in (await ann.await_round(0)).wait.reason

    asyncio.run(main())


def test_fetch_state(tmp_path: Path) -> None:
    # Large enough for several chunks.
    config = tiny_config(model={"width": 8, "latent": 64})

    async def main() -> None:
        async with federation(tmp_path, config) as all_:
            ann = all_[0]
            state = initial_state(config)
            held = (0, state.digest())
            header, data = await ann.fetch(0, held)
            assert (header.state_digest, list(header.steps), data) == (held[1], [], b"")
            for lacking in (None, (0, bytes(32)), (1, held[1])):
                header, data = await ann.fetch(0, lacking)
                assert [(s.codec, s.round) for s in header.steps] == [(pb.STATE_CODEC_KEYFRAME, 0)]
                assert header.steps[0].payload_bytes == len(data) > 64 * 1024
                assert GlobalState.from_bytes(0, data, state.dimension, "int16").digest() == held[1]
            error = await refused(ann.fetch(1), CODE.FAILED_PRECONDITION)
            assert ("prism-round", "0") in tuple(error.trailing_metadata() or ())

            for client in all_:
                await client.submit(await client.assignment())
            assignment = await ann.assignment()
            assert assignment.round == 1
            error = await refused(ann.fetch(0, held), CODE.FAILED_PRECONDITION)
            assert ("prism-round", "1") in tuple(error.trailing_metadata() or ())
            _, data = await ann.fetch(1, held)
            new = GlobalState.from_bytes(1, data, state.dimension, "int16")
            assert new.digest() == assignment.state_digest

    asyncio.run(main())
