"""A tiny run, a real server in this process, clients made of raw stubs, and processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from common import PROTOCOL_VERSION
from common.cells import CODE_SIZE, NO_CELLS, CellTable
from common.config import RunConfig
from common.fingerprint import Fingerprint
from common.layout import update_layout
from common.masks import pack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.rpc.prism.v1.federation_pb2_grpc import FederationStub
from common.seeding import derive
from server.app import serve

CODE = grpc.StatusCode
TIMEOUT = 20.0
_WIRE = {
    "mask": (pb.SEGMENT_KIND_MASK, pb.CODEC_RAW, 1),
    "score": (pb.SEGMENT_KIND_SCORE, pb.CODEC_INT16, 16),
    "weight": (pb.SEGMENT_KIND_WEIGHT, pb.CODEC_FLOAT32, 32),
}
"""Kind, codec and bits a parameter of what raw clients send."""


def tiny_config(**changes: Any) -> RunConfig:
    """A run of a few hundred parameters, as published; sections are given as dicts."""
    raw: dict[str, Any] = {
        "rounds": 3,
        "sharpening": 1.0,
        "mada": {"enabled": changes.get("method", "prism") == "prism"},
        "train": {"learning_rate": 0.1, "learning_rate_final": 0.1, "straight_through": "scaled"},
        "codec": {"up": "raw", "down": "keyframe"},
        "data": {"clients": 3, "min_class_size": 2},
        "model": {"width": 1, "latent": 1, "image_size": 16},
        "round": {"lease_seconds": 60.0, "deadline_seconds": 60.0},
        "output": {"sample_every": 0, "mask": "sample"},
    }
    if changes.get("method") == "fedavg":
        del raw["train"], raw["codec"]
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(raw)


@asynccontextmanager
async def running(
    config: RunConfig, out: Path, *, to_the_end: bool = False, **options: Any
) -> AsyncIterator[str]:
    """A server on a free loopback port; gives its address, and stops it or lets it finish."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(config, "127.0.0.1:0", out, ready=port.set_result, **options))
    await asyncio.wait({task, port}, return_when=asyncio.FIRST_COMPLETED)
    if not port.done():
        await task
        raise AssertionError("the server ended before it was ready")
    ends_itself = False
    try:
        yield f"127.0.0.1:{port.result()}"
        ends_itself = to_the_end
    finally:
        if not ends_itself:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@contextmanager
def background(log: Path, *words: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process with these arguments that does not outlive the block."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=stream, stderr=stream, **options
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that is written line by line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(value: Any) -> Any:
    """A line of a run's files without its times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in {"time", "seconds"}}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def random_payload(config: RunConfig, name: str, round_: int, salt: str = "") -> bytes:
    """Random raw updates for every segment, the same for equal arguments."""
    parts = []
    for segment in update_layout(config):
        key = derive(1, "test-payload", name, round_, segment.offset, salt)[:8]
        draw = np.random.Generator(np.random.Philox(int.from_bytes(key, "little")))
        if segment.kind == "mask":
            bits = draw.integers(0, 2, segment.count, dtype=np.uint8)
            parts.append(pack(bits).tobytes())
        elif segment.kind == "weight":
            parts.append(draw.normal(size=segment.count).astype("<f4").tobytes())
        else:
            scores = draw.integers(-9000, 9000, segment.count, dtype=np.int16)
            parts.append(scores.astype("<i2").tobytes())
    return b"".join(parts)


class RawClient:
    """One client without any logic of its own: what it sends is what the test says."""

    def __init__(self, config: RunConfig, channel: grpc.aio.Channel, name: str) -> None:
        self.config = config
        self.name = name
        self.channel = channel
        self.stub: Any = FederationStub(channel)
        self.session = ""
        self.fingerprint = Fingerprint.of(config)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("prism-session", self.session),)

    def join_request(self, **changes: Any) -> pb.JoinRequest:
        f = self.fingerprint
        fields: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "client_name": self.name,
            "instance": hashlib.md5(self.name.encode()).digest(),
            "fingerprint": pb.Fingerprint(
                run_id=f.run_id,
                seed=f.seed,
                dimension=f.dimension,
                weights_digest=f.weights_digest,
                tables_digest=f.tables_digest,
            ),
            "codecs": [v for v in pb.Codec.values() if v],
            "state_codecs": [v for v in pb.StateCodec.values() if v],
        }
        return pb.JoinRequest(**{**fields, **changes})

    async def join(self, **changes: Any) -> pb.JoinResponse:
        reply = await self.stub.Join(self.join_request(**changes), timeout=TIMEOUT)
        self.session = reply.session
        return reply

    async def await_round(self, seconds: float = 20) -> pb.AwaitRoundResponse:
        request = pb.AwaitRoundRequest(wait_seconds=seconds)
        return await self.stub.AwaitRound(request, metadata=self.metadata, timeout=2 * TIMEOUT)

    async def assignment(self) -> pb.Assignment:
        """Poll until there is one."""
        while True:
            reply = await self.await_round()
            assert reply.WhichOneof("outcome") != "finished"
            if reply.HasField("assignment"):
                return reply.assignment

    @property
    def cells(self) -> CellTable:
        """What this client says of its images."""
        if not self.config.uses_cells:
            return NO_CELLS
        return CellTable.of([[len(self.name)] * CODE_SIZE], [100 + ord(self.name[0])])

    def payload(self, round_: int, salt: str = "") -> bytes:
        return random_payload(self.config, self.name, round_, salt)

    def header(self, assignment: pb.Assignment, payload: bytes, **changes: Any) -> pb.UpdateHeader:
        fields: dict[str, Any] = {
            "run_id": self.fingerprint.run_id,
            "round": assignment.round,
            "rank": assignment.rank,
            "cohort_size": assignment.cohort_size,
            "segments": [
                pb.Segment(
                    kind=_WIRE[s.kind][0],
                    codec=_WIRE[s.kind][1],
                    offset=s.offset,
                    count=s.count,
                    payload_bytes=-(-s.count * _WIRE[s.kind][2] // 8),
                )
                for s in update_layout(self.config)
            ],
            "payload_digest": hashlib.sha256(payload).digest(),
            "report": pb.ClientReport(loss=0.5, cells=self.cells.content),
        }
        return pb.UpdateHeader(**{**fields, **changes})

    def send(self, header: pb.UpdateHeader | None, *chunks: bytes) -> Any:
        """The call of an update, header and chunks as given."""

        async def messages() -> AsyncIterator[pb.UpdateChunk]:
            if header is not None:
                yield pb.UpdateChunk(header=header)
            for chunk in chunks:
                yield pb.UpdateChunk(data=chunk)

        return self.stub.SubmitUpdate(messages(), metadata=self.metadata, timeout=TIMEOUT)

    async def submit(self, assignment: pb.Assignment, salt: str = "") -> pb.SubmitUpdateResponse:
        payload = self.payload(assignment.round, salt)
        return await self.send(self.header(assignment, payload), payload)

    async def fetch(
        self, round_: int, held: tuple[int, bytes] | None = None
    ) -> tuple[pb.StateHeader, bytes]:
        request = pb.FetchStateRequest(round=round_)
        if held is not None:
            request.holds_state = True
            request.held_round, request.held_digest = held
        header, data = None, b""
        call = self.stub.FetchState(request, metadata=self.metadata, timeout=TIMEOUT)
        async for chunk in call:
            if chunk.HasField("header"):
                assert header is None
                header = chunk.header
            data += chunk.data
        assert header is not None
        return header, data

    async def status(self) -> pb.GetStatusResponse:
        return await self.stub.GetStatus(pb.GetStatusRequest(), timeout=TIMEOUT)

    async def leave(self) -> None:
        await self.stub.Leave(pb.LeaveRequest(), metadata=self.metadata, timeout=TIMEOUT)

    async def take_part(self) -> bytes:
        """Join and submit to every round; the final digest."""
        await self.join()
        while True:
            reply = await self.await_round()
            match reply.WhichOneof("outcome"):
                case "finished":
                    await self.leave()
                    return reply.finished.state_digest
                case "assignment":
                    await self.submit(reply.assignment)


@asynccontextmanager
async def clients(config: RunConfig, address: str, *names: str) -> AsyncIterator[list[RawClient]]:
    """Raw clients on one plain channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield [RawClient(config, channel, name) for name in names]


NAMES = ("ann", "bob", "cleo")


async def whole_run(config: RunConfig, out: Path) -> bytes:
    """A run from wherever the directory stands to its end; the final digest."""
    async with (
        running(config, out, to_the_end=True) as address,
        clients(config, address, *NAMES) as all_,
    ):
        digests = await asyncio.gather(*(client.take_part() for client in all_))
    assert len(set(digests)) == 1
    return digests[0]


async def serve_finished(config: RunConfig, out: Path) -> None:
    """A server of a run that is finished ends by itself, before it listens."""
    with pytest.raises(AssertionError, match="ended before it was ready"):
        async with running(config, out):
            pass


async def snapshot(client: RawClient, out: Path) -> tuple[bytes, dict[str, bytes]]:
    """All that a refused call must leave as it was."""
    status = await client.status()
    # That it was refused is told, and time goes by.
    status.ClearField("problems")
    status.ClearField("phase_seconds")
    files = {path.name: path.read_bytes() for path in (out / "journal").iterdir()}
    return status.SerializeToString(deterministic=True), files


async def refused(call: Awaitable[Any], code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """The call fails with the status and with one line."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is code, raised.value.details()
    assert raised.value.details() and "\n" not in raised.value.details()
    return raised.value


@asynccontextmanager
async def federation(
    out: Path, config: RunConfig | None = None, joined: bool = True
) -> AsyncIterator[list[RawClient]]:
    """Three clients of a running server, in an open round if joined."""
    config = config or tiny_config()
    async with running(config, out) as address, clients(config, address, *NAMES) as all_:
        for client in all_ if joined else ():
            await client.join()
        yield all_
