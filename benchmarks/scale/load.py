"""Clients that speak the protocol and train nothing: many of them in one process.

Each joins, polls, fetches what it lacks of the state, and sends a mask that was made once. Run by
`benchmarks.scale`; prints one line of JSON, the seconds that each kind of call took.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np

from common import PROTOCOL_VERSION
from common.config import RunConfig, load_config
from common.fingerprint import Fingerprint
from common.layout import codec_of, update_layout
from common.masks import pack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.rpc.prism.v1.federation_pb2_grpc import FederationStub
from common.wire import RETRY_KEY, SEGMENT_KINDS, SESSION_KEY, chunks, fingerprint_to_pb

CALL_SECONDS: Final = 600.0
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)
"""A connection for each client, as if each were a process of its own."""

Seconds = dict[str, list[float]]


class Load:
    """What all clients of the process send, and how long their calls took."""

    def __init__(self, config: RunConfig) -> None:
        self.fingerprint = Fingerprint.of(config)
        (segment,) = update_layout(config)
        bits = np.random.default_rng(0).integers(0, 2, segment.count, dtype=np.uint8)
        payload = pack(bits).tobytes()
        self.header = pb.UpdateHeader(
            run_id=self.fingerprint.run_id,
            segments=[
                pb.Segment(
                    kind=SEGMENT_KINDS[segment.kind],
                    codec=pb.Codec.ValueType(codec_of(segment).wire),
                    offset=segment.offset,
                    count=segment.count,
                    payload_bytes=len(payload),
                )
            ],
            payload_digest=hashlib.sha256(payload).digest(),
            report=pb.ClientReport(loss=1.0),
        )
        self.data = [pb.UpdateChunk(data=data) for data in chunks(payload)]
        self.seconds: Seconds = defaultdict(list)

    def update(self, assignment: pb.Assignment) -> list[pb.UpdateChunk]:
        """The messages of an update for an assignment."""
        header = pb.UpdateHeader.FromString(self.header.SerializeToString())
        header.round, header.rank = assignment.round, assignment.rank
        header.cohort_size = assignment.cohort_size
        return [pb.UpdateChunk(header=header), *self.data]

    @asynccontextmanager
    async def timed(self, kind: str) -> AsyncIterator[None]:
        """Note how long a block took."""
        started = time.perf_counter()
        yield
        self.seconds[kind].append(time.perf_counter() - started)


async def client(load: Load, address: str, name: str) -> None:
    """One client, from joining to the end of the run."""
    async with grpc.aio.insecure_channel(address, _OPTIONS) as channel:
        stub: Any = FederationStub(channel)
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            client_name=name,
            instance=hashlib.sha256(name.encode()).digest()[:16],
            fingerprint=fingerprint_to_pb(load.fingerprint),
            codecs=[codec for codec in pb.Codec.values() if codec],
            state_codecs=[codec for codec in pb.StateCodec.values() if codec],
        )
        async with load.timed("join"):
            joined = await stub.Join(request, timeout=CALL_SECONDS)
        session = {"metadata": ((SESSION_KEY, joined.session),), "timeout": CALL_SECONDS}
        beats = asyncio.create_task(_heartbeats(stub, session, joined.lease_seconds / 3))
        held: tuple[int, bytes] | None = None
        while True:
            reply = await stub.AwaitRound(pb.AwaitRoundRequest(wait_seconds=20), **session)
            if reply.HasField("finished"):
                break
            if not reply.HasField("assignment"):
                continue
            given = reply.assignment
            async with load.timed("fetch"):
                await _fetch(stub, given, held, session)
            held = given.round, given.state_digest
            async with load.timed("submit"):
                await _submit(stub, load.update(given), session)
        beats.cancel()
        await stub.Leave(pb.LeaveRequest(), **session)


async def sender(load: Load, address: str, updates: int) -> None:
    """One client of `benchmarks.scale.sink`, which takes whatever it is sent."""
    async with grpc.aio.insecure_channel(address, _OPTIONS) as channel:
        stub: Any = FederationStub(channel)
        for _ in range(updates):
            async with load.timed("submit"):
                await stub.SubmitUpdate(iter(load.update(pb.Assignment())), timeout=CALL_SECONDS)


async def _heartbeats(stub: Any, session: dict[str, Any], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await stub.Heartbeat(pb.HeartbeatRequest(), **session)


async def _fetch(
    stub: Any, given: pb.Assignment, held: tuple[int, bytes] | None, session: dict[str, Any]
) -> None:
    request = pb.FetchStateRequest(round=given.round)
    if held is not None:
        request.holds_state = True
        request.held_round, request.held_digest = held
    async for _ in stub.FetchState(request, **session):
        pass


async def _submit(stub: Any, messages: list[pb.UpdateChunk], session: dict[str, Any]) -> None:
    while True:
        try:
            await stub.SubmitUpdate(iter(messages), **session)
        except grpc.aio.AioRpcError as error:
            said = dict(error.trailing_metadata() or ())
            if RETRY_KEY not in said:
                raise
            await asyncio.sleep(float(said[RETRY_KEY]))
        else:
            return


async def main(mode: str, address: str, config: Path, first: int, count: int, rounds: int) -> None:
    """Run the clients of this process, and print what their calls took."""
    load = Load(load_config(config))
    if mode == "sink":
        await asyncio.gather(*(sender(load, address, rounds) for _ in range(count)))
    else:
        names = [f"client-{i:05d}" for i in range(first, first + count)]
        await asyncio.gather(*(client(load, address, name) for name in names))
    print(json.dumps(load.seconds))


if __name__ == "__main__":
    _mode, _address, _config, *_numbers = sys.argv[1:]
    asyncio.run(main(_mode, _address, Path(_config), *map(int, _numbers)))
