"""SubmitUpdate on a real server on loopback: what is taken, what is refused, and once only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support import CODE, RawClient, federation, jsonl, refused, snapshot, tiny_config

from common.cells import CODE_SIZE, CellTable
from common.rpc.prism.v1 import federation_pb2 as pb


async def insist(send: Callable[[], Awaitable[pb.SubmitUpdateResponse]]) -> None:
    """Send again while an older call of the same client, met late, takes the place."""
    while True:
        try:
            await send()
        except grpc.aio.AioRpcError as error:
            assert error.code() is CODE.ALREADY_EXISTS
        else:
            return


Sent = tuple[pb.UpdateHeader | None, list[bytes]]


class Upload:
    """An update that would be taken, and its parts for one that is not."""

    def __init__(self, client: RawClient, assignment: pb.Assignment) -> None:
        self.client = client
        self.assignment = assignment
        self.payload = client.payload(0)
        self.good = client.header(assignment, self.payload)
        self.mask_bytes, self.score_bytes = (s.payload_bytes for s in self.good.segments)

    def header(self, **changes: Any) -> pb.UpdateHeader:
        return self.client.header(self.assignment, self.payload, **changes)

    def segments(self, index: int, **changes: Any) -> list[pb.Segment]:
        altered = [pb.Segment.FromString(s.SerializeToString()) for s in self.good.segments]
        for name, value in changes.items():
            setattr(altered[index], name, value)
        return altered

    def altered(self, **changes: Any) -> Sent:
        """The whole payload under another header."""
        return self.header(**changes), [self.payload]

    def segment(self, index: int, **changes: Any) -> Sent:
        """The whole payload, one of its segments described otherwise."""
        return self.altered(segments=self.segments(index, **changes))

    def report(self, **figures: Any) -> Sent:
        """The whole payload, with these figures about it."""
        return self.altered(report=pb.ClientReport(loss=0.5, **figures))

    def other(self, payload: bytes, **changes: Any) -> Sent:
        """Another payload with its own digest, in segments changed at index 0 or 1."""
        segments = self.segments(**changes)
        return self.client.header(self.assignment, payload, segments=segments), [payload]

    def too_long(self) -> Sent:
        return self.other(self.payload + b"\0", index=1, payload_bytes=self.score_bytes + 1)

    def too_short(self) -> Sent:
        return self.other(self.payload[1:], index=0, payload_bytes=self.mask_bytes - 1)

    def bits_beyond_the_last(self) -> Sent:
        return self.other(b"\xff" * self.mask_bytes + self.payload[self.mask_bytes :], index=0)


CELL = CellTable.of([[0.5] * CODE_SIZE], [20]).content
INVALID, PRECONDITION = CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION
EXHAUSTED = CODE.RESOURCE_EXHAUSTED
REFUSED: dict[str, tuple[grpc.StatusCode, Callable[[Upload], Sent]]] = {
    "no message": (INVALID, lambda _: (None, [])),
    "no header": (INVALID, lambda u: (None, [u.payload])),
    "another run": (PRECONDITION, lambda u: u.altered(run_id=bytes(32))),
    "a later round": (PRECONDITION, lambda u: u.altered(round=1)),
    "another rank": (PRECONDITION, lambda u: u.altered(rank=1)),
    "another cohort": (PRECONDITION, lambda u: u.altered(cohort_size=2)),
    "no digest": (INVALID, lambda u: u.altered(payload_digest=b"")),
    "no segments": (INVALID, lambda u: u.altered(segments=[])),
    "one segment": (INVALID, lambda u: u.altered(segments=u.segments(0)[:1])),
    "segments swapped": (INVALID, lambda u: u.altered(segments=u.segments(0)[::-1])),
    "another kind": (INVALID, lambda u: u.segment(0, kind=2)),
    "another codec": (INVALID, lambda u: u.segment(0, codec=2)),
    "another offset": (INVALID, lambda u: u.segment(1, offset=1)),
    "another count": (INVALID, lambda u: u.segment(1, count=1)),
    "too long": (EXHAUSTED, Upload.too_long),
    "huge": (EXHAUSTED, lambda u: u.segment(0, payload_bytes=2**63)),
    "declared too short": (INVALID, Upload.too_short),
    "cut short": (INVALID, lambda u: (u.good, [u.payload[:-1]])),
    "nothing": (INVALID, lambda u: (u.good, [])),
    "more than declared": (INVALID, lambda u: (u.good, [u.payload, b"\0"])),
    "damaged": (INVALID, lambda u: (u.good, [u.client.payload(0, "other")])),
    "bits beyond the last": (INVALID, Upload.bits_beyond_the_last),
    "NaN bits": (INVALID, lambda u: u.report(cross_entropy_bits=nan, kl_bits=0)),
    "NaN divergence": (INVALID, lambda u: u.report(cross_entropy_bits=1, kl_bits=nan)),
    "infinite bits": (INVALID, lambda u: u.report(cross_entropy_bits=inf, kl_bits=0)),
    "17 bits": (INVALID, lambda u: u.report(cross_entropy_bits=17, kl_bits=0)),
    "negative bits": (INVALID, lambda u: u.report(cross_entropy_bits=1, kl_bits=-1)),
    "half of the bits": (INVALID, lambda u: u.report(kl_bits=0)),
    "a class too many": (INVALID, lambda u: u.report(classes=[3, 10])),
    "classes that do not ascend": (INVALID, lambda u: u.report(classes=[3, 3])),
    "cells where the run has none": (INVALID, lambda u: u.report(cells=CELL)),
    "beyond gRPC's limit": (EXHAUSTED, lambda u: (u.good, [bytes(1 << 21)])),
}
OF_CELLS: dict[str, bytes] = {
    "none": b"",
    "half of one": CELL[:18],
    "one more than there may be": CELL * 3,
    "too few images": CELL[:-4] + (19).to_bytes(4, "little"),
    "not a number": b"\xff" * 2 + CELL[2:],
}
"""Tables that a run of cells, two a client and twenty images each, refuses."""
SAYS_THE_ROUND = ("a later round", "another rank", "another cohort")
TWO_KINDS = tiny_config(alpha=0.3)
"""A mask segment and a score segment."""


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_update_changes_nothing(tmp_path: Path, what: str) -> None:
    code, make = REFUSED[what]

    async def main() -> None:
        async with federation(tmp_path, TWO_KINDS) as (ann, *_):
            upload = Upload(ann, await ann.assignment())
            before = await snapshot(ann, tmp_path)
            header, chunks = make(upload)
            error = await refused(ann.send(header, *chunks), code)
            said = dict(error.trailing_metadata() or ())
            assert said.get("prism-round") == ("0" if what in SAYS_THE_ROUND else None)
            assert await snapshot(ann, tmp_path) == before
            assert not (await ann.send(upload.good, upload.payload)).duplicate

    asyncio.run(main())


@pytest.mark.parametrize("what", OF_CELLS)
def test_cells_that_the_run_does_not_take(tmp_path: Path, what: str) -> None:
    data = {"labels": "cells", "cells": 2, "min_class_size": 20}

    async def main() -> None:
        async with federation(tmp_path, tiny_config(alpha=0.3, data=data)) as (ann, *_):
            upload = Upload(ann, await ann.assignment())
            before = await snapshot(ann, tmp_path)
            header, chunks = upload.report(cells=OF_CELLS[what])
            await refused(ann.send(header, *chunks), INVALID)
            assert await snapshot(ann, tmp_path) == before
            header, chunks = upload.report(cells=CELL * 2)
            assert not (await ann.send(header, *chunks)).duplicate

    asyncio.run(main())


def test_a_second_header_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            header = ann.header(await ann.assignment(), ann.payload(0))
            before = await snapshot(ann, tmp_path)
            twice = ann.stub.SubmitUpdate(metadata=ann.metadata)
            await twice.write(pb.UpdateChunk(header=header))
            await twice.write(pb.UpdateChunk(header=header))
            await refused(twice, INVALID)
            assert await snapshot(ann, tmp_path) == before

    asyncio.run(main())


def test_in_pieces_of_any_size_it_is_taken_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path, TWO_KINDS) as (ann, bob, cleo):
            assignment = await ann.assignment()
            payload = ann.payload(0)
            header = ann.header(assignment, payload)
            pieces = [payload[i : i + 7] for i in range(0, len(payload), 7)]
            reply = await ann.send(header, *pieces)
            assert (reply.round, reply.duplicate) == (0, False)
            before = await snapshot(ann, tmp_path)
            assert (await ann.send(header, payload)).duplicate
            assert (await ann.send(header)).duplicate, "the digest says enough"
            await refused(ann.submit(assignment, "other"), CODE.ALREADY_EXISTS)
            assert await snapshot(ann, tmp_path) == before
            for client in (bob, cleo):
                await client.submit(await client.assignment())
            assert (await ann.assignment()).round == 1
            error = await refused(ann.send(header, payload), PRECONDITION)
            assert ("prism-round", "1") in tuple(error.trailing_metadata() or ())

    asyncio.run(main())


def test_who_is_not_in_the_cohort_may_not_submit(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, *_):
            assignment = await ann.assignment()
            dora = RawClient(ann.config, ann.channel, "dora")
            await dora.join()
            before = await snapshot(ann, tmp_path)
            await refused(dora.submit(assignment), CODE.PERMISSION_DENIED)
            assert await snapshot(ann, tmp_path) == before
            assert "dora" not in (await dora.await_round(0)).wait.reason

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


def test_below_quorum_the_deadline_moves_and_what_is_in_stays_in(tmp_path: Path) -> None:
    config = tiny_config(rounds=3, round={"quorum": 0.6, "deadline_seconds": 0.5})

    async def main() -> None:
        async with federation(tmp_path, config) as (ann, bob, cleo):
            await ann.submit(await ann.assignment())
            assignment = await bob.assignment()
            left = assignment.deadline_seconds
            while (assignment := await bob.assignment()).deadline_seconds <= left:
                left = assignment.deadline_seconds
            assert (await ann.await_round(0)).HasField("wait"), "its update is in"
            await bob.submit(assignment)
            assert (await ann.assignment()).round == 1
            wait = (await cleo.await_round(0)).wait
            assert wait.reason.startswith("left out until round 2 because it missed a deadline")
            late = await refused(cleo.submit(assignment), CODE.FAILED_PRECONDITION)
            assert late.details() == "round 0 is over; the run is at round 1"
            for client in (ann, bob):
                await client.submit(await client.assignment())
            assert (await cleo.assignment()).round == 2

    asyncio.run(main())
    first, second = jsonl(tmp_path / "metrics.jsonl")[:2]
    assert (first["clients"], second["clients"]) == (2, 2)
    assert first["seconds"] >= 0.5
