"""Many clients, and one that hoards: a server process keeps its time and its memory."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
import typer
from support import RawClient, clients, tiny_config
from typer.testing import CliRunner

from benchmarks.scale.__main__ import main, measure
from benchmarks.scale.processes import Served, serving
from common.open_files import SPARE, allow_connections
from common.rpc.prism.v1 import federation_pb2 as pb

MIB = 2**20


def test_a_small_run_of_the_benchmark() -> None:
    found = measure(clients=12, rounds=3, processes=2, width=1)
    assert found["complete_rounds"] == 3
    server, sink = found["server"], found["sink"]
    assert len(server["mib_after_each_round"]) == 3
    for side in (server, sink):
        assert side["cpu_seconds_a_round"] >= 0 and side["peak_mib"] > 10
        assert 0 < side["submit_p50"] <= side["submit_p99"]
    assert server["join_p50"] > 0 and server["fetch_p50"] > 0


def test_the_benchmark_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    side = {"seconds_a_round": 1.5}
    found = {"clients": 2, "rounds": 4, "complete_rounds": 4, "server": side, "sink": side}
    monkeypatch.setattr("benchmarks.scale.__main__.measure", lambda *_: found)
    app = typer.Typer()
    app.command()(main)
    said = CliRunner().invoke(app, ["--clients", "2", "--rounds", "4"]).output
    assert said.splitlines() == [
        "2 clients, 4 of 4 rounds with all of them",
        "server: seconds_a_round 1.5",
        "sink: seconds_a_round 1.5",
    ]
    assert json.loads(CliRunner().invoke(app, ["--json"]).output) == found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """Of a run whose updates are 1.6 MB each."""
    (tmp_path / "run.toml").write_text(LARGE.to_toml())
    out = tmp_path / "run"
    words = ("-m", "server", tmp_path / "run.toml", "--bind", "127.0.0.1:0", "--out", out)
    with serving(words, out / "address") as served:
        yield served


LARGE = tiny_config(
    method="fedavg",
    rounds=3,
    model={"width": 16, "latent": 128, "image_size": 32},
    round={"min_clients": 1},
    data={"clients": 2},
)
STREAMS = 120


def test_one_client_that_hoards_takes_little_memory_and_not_for_long(server: Served) -> None:
    async def hoard(ann: RawClient) -> None:
        """Streams that each lack the last bytes, one after the other, none of them ended."""
        header, *chunks = update(ann, await ann.assignment())
        calls = []
        for _ in range(STREAMS):
            calls.append(call := ann.stub.SubmitUpdate(metadata=ann.metadata))
            # A refusal may come while it still sends.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(pb.UpdateChunk(header=header))
                for chunk in chunks[:-1]:
                    await call.write(pb.UpdateChunk(data=chunk))
        ends = [asyncio.ensure_future(call.code()) for call in calls]
        while sum(not end.done() for end in ends) > 1:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=1)
        for call in calls:
            call.cancel()

    def peak() -> int:
        return max(sample.resident for sample in server.samples)

    async def run() -> int:
        async with clients(LARGE, server.address, "ann") as (ann,):
            await ann.join()
            await ann.send(*update(ann, await ann.assignment()))
            await ann.assignment()
            before = server.samples[-1].resident
            await hoard(ann)
            assert (await ann.status()).round == 1
            async with asyncio.timeout(30):
                # Another process's memory sends no event.
                while server.samples[-1].resident >= peak() - 8 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            return before

    before = asyncio.run(run())
    assert peak() - before < 50 * MIB


def update(
    client: RawClient, assignment: pb.Assignment
) -> tuple[pb.UpdateHeader, *tuple[bytes, ...]]:
    """Header and chunks of an honest update."""
    payload = client.payload(assignment.round)
    chunks = [payload[at : at + 65536] for at in range(0, len(payload), 65536)]
    return client.header(assignment, payload), *chunks


def test_the_limit_of_open_files_is_raised_or_the_lack_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(2), new))
    allow_connections(1024 - SPARE)
    assert limits == [1024, 4096] and not caplog.text
    allow_connections(2000)
    assert limits == [2000 + SPARE, 4096] and not caplog.text
    allow_connections(10_000)
    assert limits == [4096, 4096]
    assert f"ulimit -n {10_000 + SPARE}" in caplog.text
    limits[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    allow_connections(10_000)
    assert limits[0] == resource.RLIM_INFINITY
