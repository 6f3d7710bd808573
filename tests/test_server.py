"""One server process from start to end: what it leaves, counts, tells and hides."""

from __future__ import annotations

import asyncio
import json
from math import nan
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import NAMES, clients, federation, refused, running, tiny_config, whole_run

from common.config import RunConfig, load_config
from common.downlink import initial_state
from common.model.export import build_model, load_model
from common.rpc.prism.v1 import federation_pb2 as pb
from server.app import serve
from server.average import StateAverage
from server.journal import Journal
from server.service import FederationService

CODE = grpc.StatusCode


def test_a_run_leaves_its_outputs(tmp_path: Path) -> None:
    config = tiny_config(rounds=3, alpha=0.3, output={"sample_every": 2})
    digest = asyncio.run(whole_run(config, tmp_path))
    again = tiny_config(rounds=3, alpha=0.3)
    assert digest == asyncio.run(whole_run(again, tmp_path / "again")), "a matter of the seed"
    assert load_config(tmp_path / "config.toml") == config
    lines = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["clients"] == 3 and line["loss"] == 0.5
        assert 0 < line["lambda"] < 1 and 0.3 < line["density"] < 0.7
        assert 0 < line["entropy_bits"] < 1 and line["seconds"] >= 0
    assert load_model(tmp_path / "model.prism").round == 3
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    assert not (tmp_path / "address").exists()


def test_the_model_is_of_the_average_of_the_rounds(tmp_path: Path) -> None:
    output = {"sample_every": 0, "average": 1.0, "mask": "threshold"}
    config = tiny_config(rounds=3, output=output)
    asyncio.run(whole_run(config, tmp_path))
    journal = Journal(tmp_path, config)
    point = journal.recover().checkpoint
    journal.close()
    assert point is not None
    average = StateAverage(config, initial_state(config))
    average.restore(point.state, point.arrays)
    mask, of_average, of_last = (
        model.parameters
        for model in (
            load_model(tmp_path / "model.prism"),
            build_model(config, average.state),
            build_model(config, point.state),
        )
    )
    assert mask == of_average
    assert mask != of_last


def test_what_clients_say_of_their_masks(tmp_path: Path) -> None:
    said = {
        "ann": {"loss": 0.25, "cross_entropy_bits": 0.5, "kl_bits": 0.125, "classes": [0, 4]},
        "bob": {"loss": nan, "cross_entropy_bits": 1.0, "kl_bits": 0.375},
        "cleo": {"loss": 0.75, "classes": [4, 9]},
    }

    async def main() -> None:
        async with federation(tmp_path, tiny_config(rounds=1)) as all_:
            for client in all_:
                assignment, payload = await client.assignment(), client.payload(0)
                report = pb.ClientReport(**said[client.name])
                header = client.header(assignment, payload, report=report)
                await refused(client.send(header, payload[1:]), CODE.INVALID_ARGUMENT)
                assert not (await client.send(header, payload)).duplicate
                if client.name == "ann":
                    assert (await client.send(header, payload)).duplicate
            while (await all_[0].status()).phase != "finished":
                await all_[0].await_round()

    asyncio.run(main())
    (line,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (line["loss"], line["cross_entropy_bits"], line["kl_bits"]) == (0.5, 0.75, 0.25)
    noted = [
        (line["client"], line["cross_entropy_bits"], line["kl_bits"])
        for line in map(json.loads, (tmp_path / "comm.jsonl").read_text().splitlines())
        if "kl_bits" in line and (line["rpc"], line["direction"]) == ("SubmitUpdate", "up")
    ]
    assert noted == [("ann", 0.5, 0.125), ("bob", 1.0, 0.375)], "each update once"
    assert load_model(tmp_path / "model.prism").learned == (0, 4, 9)


def test_bytes_are_counted_exactly(tmp_path: Path) -> None:
    config = tiny_config(rounds=1)

    async def main() -> dict[tuple[str, str, str], tuple[int, int]]:
        sent: dict[tuple[str, str, str], tuple[int, int]] = {}

        def note(rpc: str, direction: str, payload: int, *messages: Any) -> None:
            size = sum(len(m.SerializeToString()) for m in messages)
            old = sent.get(("ann", direction, rpc), (0, 0))
            sent["ann", direction, rpc] = (old[0] + payload, old[1] + size)

        async with federation(tmp_path, config, joined=False) as (ann, bob, cleo):
            note("Join", "up", 0, ann.join_request())
            note("Join", "down", 0, await ann.join())
            await bob.join()
            await cleo.join()
            poll = pb.AwaitRoundRequest(wait_seconds=5)
            for _ in range(3):
                reply = await ann.await_round(5)
                note("AwaitRound", "up", 0, poll)
                note("AwaitRound", "down", 0, reply)
            request = pb.FetchStateRequest(round=0)
            note("FetchState", "up", 0, request)
            async for chunk in ann.stub.FetchState(request, metadata=ann.metadata):
                note("FetchState", "down", len(chunk.data), chunk)
            payload = ann.payload(0)
            header = ann.header(reply.assignment, payload)
            note(
                "SubmitUpdate",
                "up",
                len(payload),
                pb.UpdateChunk(header=header),
                *(pb.UpdateChunk(data=c) for c in (payload[:9], payload[9:])),
            )
            note("SubmitUpdate", "down", 0, await ann.send(header, payload[:9], payload[9:]))
            await bob.submit(await bob.assignment())
        return sent

    sent = asyncio.run(main())
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    polls = 0
    for line in map(json.loads, (tmp_path / "comm.jsonl").read_text().splitlines()):
        assert line["round"] == 0
        if line["client"] == "ann":
            key = ("ann", line["direction"], line["rpc"])
            assert key not in found, "one line a call, or a round"
            found[key] = (line["payload_bytes"], line["message_bytes"])
            polls += line["calls"] if key[1:] == ("up", "AwaitRound") else 0
    assert found == sent
    assert polls == 3
    assert found["ann", "up", "SubmitUpdate"][0] == -(-tiny_dimension(config) // 8)


def tiny_dimension(config: RunConfig) -> int:
    return initial_state(config).dimension


def test_finished_is_told_until_all_have_left(tmp_path: Path) -> None:
    config = tiny_config(rounds=1)

    async def main() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve(config, "127.0.0.1:0", tmp_path, ready=port.set_result))
        async with clients(config, f"127.0.0.1:{await port}", *NAMES) as all_:
            for client in all_:
                await client.join()
            for client in all_:
                await client.submit(await client.assignment())
            for client in all_:
                finished = (await client.await_round()).finished
                assert finished.round == 1
                header, _ = await client.fetch(1)
                assert header.state_digest == finished.state_digest
                assert (await client.status()).phase == "finished"
                assert not server.done()
                await client.leave()
            await asyncio.wait_for(server, 30)

    asyncio.run(main())


def test_stopping_tells_those_who_wait(tmp_path: Path) -> None:
    async def main() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(tiny_config(), "127.0.0.1:0", tmp_path, ready=port.set_result)
        )
        async with clients(tiny_config(), f"127.0.0.1:{await port}", "ann") as (ann,):
            await ann.join()
            poll = asyncio.create_task(ann.await_round(20))
            assert (await ann.await_round(0)).HasField("wait")
            server.cancel()
            await refused(poll, CODE.UNAVAILABLE)
            with pytest.raises(asyncio.CancelledError):
                await server

    asyncio.run(main())


def test_failures_tell_nothing_of_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> pb.GetStatusResponse:
        raise RuntimeError("a secret")

    async def main() -> None:
        monkeypatch.setattr(FederationService, "GetStatus", broken)
        async with federation(tmp_path) as (ann, *_):
            error = await refused(ann.status(), CODE.INTERNAL)
            assert error.details() == "the server failed; its log says how"
            assert "a secret" in caplog.text
            garbage = ann.channel.unary_unary("/prism.v1.Federation/Join")(b"\xff\xff\xff")
            await refused(garbage, CODE.INVALID_ARGUMENT)

    asyncio.run(main())


def test_health_and_reflection(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            running(tiny_config(), tmp_path, reflection=True) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("", "prism.v1.Federation"):
                reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert reply.status == health_pb2.HealthCheckResponse.SERVING
            mirror: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            listed = await mirror.ServerReflectionInfo(iter([asked])).read()
            names = {s.name for s in listed.list_services_response.service}
            assert "prism.v1.Federation" in names

    asyncio.run(main())
