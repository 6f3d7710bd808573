"""A real server on loopback, driven by raw stubs: the contract, status by status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from math import inf, nan
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from support import RawClient, federation, refused, tiny_config

from common.config import load_config
from common.downlink import initial_state
from common.fingerprint import Fingerprint
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import GlobalState

CODE = grpc.StatusCode


async def insist(send: Callable[[], Awaitable[pb.SubmitUpdateResponse]]) -> None:
    """Send again while an older call of the same client, met late, takes the place."""
    while True:
        try:
            await send()
        except grpc.aio.AioRpcError as error:
            assert error.code() is CODE.ALREADY_EXISTS
        else:
            return


async def snapshot(client: RawClient, out: Path) -> tuple[bytes, dict[str, bytes]]:
    """All that a refused call must leave as it was."""
    status = await client.status()
    files = {path.name: path.read_bytes() for path in (out / "journal").iterdir()}
    return status.SerializeToString(deterministic=True), files


# Join


def test_join_teaches_and_enrols(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, *_):
            taught = await ann.stub.Join(ann.join_request(fingerprint=None))
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


def test_join_refusals(tmp_path: Path) -> None:
    ours = asdict(Fingerprint.of(tiny_config()))

    def altered(**changes: Any) -> dict[str, Any]:
        return {"fingerprint": pb.Fingerprint(**{**ours, **changes})}

    cases: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        ({"protocol_version": 2}, CODE.FAILED_PRECONDITION, "protocol"),
        (altered(seed=7), CODE.FAILED_PRECONDITION, "seed"),
        (altered(dimension=9), CODE.FAILED_PRECONDITION, "9 parameters"),
        (altered(weights_digest=bytes(32)), CODE.FAILED_PRECONDITION, "weights"),
        (altered(tables_digest=bytes(32)), CODE.FAILED_PRECONDITION, "tables"),
        (altered(run_id=bytes(32)), CODE.FAILED_PRECONDITION, "run"),
        ({"codecs": [pb.CODEC_INT16]}, CODE.FAILED_PRECONDITION, "CODEC_RAW"),
        ({"state_codecs": []}, CODE.FAILED_PRECONDITION, "STATE_CODEC_KEYFRAME"),
        ({"client_name": ""}, CODE.INVALID_ARGUMENT, "name"),
        ({"client_name": "x" * 65}, CODE.INVALID_ARGUMENT, "name"),
        ({"client_name": "a\nb"}, CODE.INVALID_ARGUMENT, "name"),
        ({"client_name": "x" * 100_000}, CODE.INVALID_ARGUMENT, "name"),
        ({"instance": b"short"}, CODE.INVALID_ARGUMENT, "16 bytes"),
        ({"client_name": "ann", "instance": bytes(16)}, CODE.ALREADY_EXISTS, "ann"),
    ]

    async def main() -> None:
        async with federation(tmp_path, joined=False) as (ann, bob, _):
            await ann.join()
            before = await snapshot(ann, tmp_path)
            for changes, code, text in cases:
                error = await refused(bob.join(**changes), code)
                assert text in (error.details() or ""), changes
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
            await refused(dora.join(wants_partition=True), CODE.FAILED_PRECONDITION)
            await dora.join()
            # What a client that is gone held goes to one that needs it.
            await ann.leave()
            assert (await dora.join(wants_partition=True)).partition_index == 1
            await refused(ann.join(wants_partition=True), CODE.FAILED_PRECONDITION)

    asyncio.run(main())


# Sessions


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


# AwaitRound and FetchState


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


# SubmitUpdate


def test_submit_refusals_change_nothing(tmp_path: Path) -> None:
    config = tiny_config(alpha=0.3)

    async def main() -> None:
        async with federation(tmp_path, config) as (ann, bob, cleo):
            assignment = await ann.assignment()
            payload = ann.payload(0)
            good = ann.header(assignment, payload)

            def segments(index: int, **changes: Any) -> list[pb.Segment]:
                altered = [pb.Segment.FromString(s.SerializeToString()) for s in good.segments]
                for name, value in changes.items():
                    setattr(altered[index], name, value)
                return altered

            def header(**changes: Any) -> pb.UpdateHeader:
                return ann.header(assignment, payload, **changes)

            def saying(**bits: float) -> pb.UpdateHeader:
                return header(report=pb.ClientReport(examples=10, loss=0.5, **bits))

            other = ann.payload(0, "other")
            long = payload + b"\0"
            longer = ann.header(
                assignment,
                long,
                segments=segments(1, payload_bytes=good.segments[1].payload_bytes + 1),
            )
            less = good.segments[0].payload_bytes - 1
            shorter = ann.header(assignment, payload[1:], segments=segments(0, payload_bytes=less))
            padded = b"\xff" * good.segments[0].payload_bytes + payload[less + 1 :]
            bad_bits = ann.header(assignment, padded)
            invalid, precondition = CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION
            cases: list[tuple[str, pb.UpdateHeader | None, list[bytes], grpc.StatusCode]] = [
                ("no message", None, [], invalid),
                ("no header", None, [payload], invalid),
                ("another run", header(run_id=bytes(32)), [payload], precondition),
                ("a later round", header(round=1), [payload], precondition),
                ("another rank", header(rank=1), [payload], precondition),
                ("another cohort", header(cohort_size=2), [payload], precondition),
                ("no digest", header(payload_digest=b""), [payload], invalid),
                ("no segments", header(segments=[]), [payload], invalid),
                ("one segment", header(segments=segments(0)[:1]), [payload], invalid),
                ("swapped", header(segments=segments(0)[::-1]), [payload], invalid),
                ("kind", header(segments=segments(0, kind=2)), [payload], invalid),
                ("codec", header(segments=segments(0, codec=2)), [payload], invalid),
                ("offset", header(segments=segments(1, offset=1)), [payload], invalid),
                ("count", header(segments=segments(1, count=1)), [payload], invalid),
                ("too large", longer, [long], CODE.RESOURCE_EXHAUSTED),
                (
                    "huge",
                    header(segments=segments(0, payload_bytes=2**63)),
                    [payload],
                    CODE.RESOURCE_EXHAUSTED,
                ),
                ("declared too short", shorter, [payload[1:]], invalid),
                ("cut short", good, [payload[:-1]], invalid),
                ("nothing", good, [], invalid),
                ("more than declared", good, [payload, b"\0"], invalid),
                ("damaged", good, [other], invalid),
                ("bits beyond the last", bad_bits, [padded], invalid),
                ("NaN bits", saying(cross_entropy_bits=nan, kl_bits=0), [payload], invalid),
                ("NaN divergence", saying(cross_entropy_bits=1, kl_bits=nan), [payload], invalid),
                ("infinite bits", saying(cross_entropy_bits=inf, kl_bits=0), [payload], invalid),
                ("17 bits", saying(cross_entropy_bits=17, kl_bits=0), [payload], invalid),
                ("negative bits", saying(cross_entropy_bits=1, kl_bits=-1), [payload], invalid),
                ("half of it", saying(kl_bits=0), [payload], invalid),
                ("beyond gRPC's limit", good, [bytes(1 << 21)], CODE.RESOURCE_EXHAUSTED),
            ]
            before = await snapshot(ann, tmp_path)
            for what, head, chunks, code in cases:
                error = await refused(ann.send(head, *chunks), code)
                if what in ("a later round", "another rank"):
                    assert ("prism-round", "0") in tuple(error.trailing_metadata() or ()), what
                assert await snapshot(ann, tmp_path) == before, what
            twice = ann.stub.SubmitUpdate(metadata=ann.metadata)
            await twice.write(pb.UpdateChunk(header=good))
            await twice.write(pb.UpdateChunk(header=good))
            await refused(twice, invalid)
            assert await snapshot(ann, tmp_path) == before

            # In pieces of any size it is taken, once.
            pieces = [payload[i : i + 7] for i in range(0, len(payload), 7)]
            reply = await ann.send(good, *pieces)
            assert (reply.round, reply.duplicate) == (0, False)
            before = await snapshot(ann, tmp_path)
            assert (await ann.send(good, payload)).duplicate
            assert (await ann.send(good)).duplicate, "the digest says enough"
            await refused(ann.submit(assignment, "other"), CODE.ALREADY_EXISTS)
            assert await snapshot(ann, tmp_path) == before

            dora = RawClient(config, ann.channel, "dora")
            await dora.join()
            await refused(dora.submit(assignment), CODE.PERMISSION_DENIED)
            assert "dora" not in "".join((await dora.await_round(0)).wait.reason)
            for client in (bob, cleo):
                await client.submit(await client.assignment())
            while (await ann.status()).round == 0:
                await ann.await_round(20)
            error = await refused(ann.send(good, payload), CODE.FAILED_PRECONDITION)
            assert ("prism-round", "1") in tuple(error.trailing_metadata() or ())

    asyncio.run(main())


def test_same_update_at_the_same_time_goes_in_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            assignment = await ann.assignment()
            calls = [ann.submit(assignment) for _ in range(8)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            fresh = [r for r in results if isinstance(r, pb.SubmitUpdateResponse)]
            assert sum(not r.duplicate for r in fresh) <= 1
            for error in results:
                if isinstance(error, grpc.aio.AioRpcError):
                    assert error.code() is CODE.ALREADY_EXISTS, "a newer call took over"
            assert fresh, "the newest call gets through"
            assert (await ann.submit(assignment)).duplicate
            log = (tmp_path / "journal" / "round-000000.log").read_bytes()
            assert log.count(b'"kind": "update"') == 1

    asyncio.run(main())


def test_different_updates_at_the_same_time_leave_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            assignment = await ann.assignment()
            calls = [ann.submit(assignment, salt=str(i)) for i in range(8)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            won = [i for i, r in enumerate(results) if isinstance(r, pb.SubmitUpdateResponse)]
            assert len(won) == 1
            for error in results:
                if isinstance(error, grpc.aio.AioRpcError):
                    assert error.code() is CODE.ALREADY_EXISTS
            assert (await ann.submit(assignment, salt=str(won[0]))).duplicate
            log = (tmp_path / "journal" / "round-000000.log").read_bytes()
            assert log.count(b'"kind": "update"') == 1

    asyncio.run(main())


def test_an_upload_that_broke_off_may_be_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            assignment = await ann.assignment()
            payload = ann.payload(0)
            header = ann.header(assignment, payload)
            for salt in ("a", "b"):
                broken = ann.stub.SubmitUpdate(metadata=ann.metadata)
                await broken.write(pb.UpdateChunk(header=ann.header(assignment, salt.encode())))
                await broken.write(pb.UpdateChunk(data=payload[:3]))
                if salt == "a":
                    broken.cancel()
            await insist(lambda: ann.send(header, payload))
            # The call that still hung is told that it is too late.
            await broken.done_writing()
            await refused(broken, CODE.ALREADY_EXISTS)

    asyncio.run(main())


def test_deadline_closes_with_quorum_and_reopens_without(tmp_path: Path) -> None:
    config = tiny_config(rounds=2, round={"quorum": 0.6, "deadline_seconds": 0.5})

    async def main() -> None:
        async with federation(tmp_path, config) as (ann, bob, cleo):
            await ann.submit(await ann.assignment())
            # Alone it is below quorum: it is asked again, and so are the others.
            again = await ann.assignment()
            assert again.round == 0
            await ann.submit(again)
            await bob.submit(await bob.assignment())
            while (assignment := await cleo.assignment()).round == 0:
                poll = await ann.await_round(20)
                if poll.HasField("assignment") and poll.assignment.round == 0:
                    await ann.submit(poll.assignment)
                    await bob.submit(await bob.assignment())
            assert assignment.round == 1

    asyncio.run(main())
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["clients"] == 2 and line["seconds"] >= 0.5
