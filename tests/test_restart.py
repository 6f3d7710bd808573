"""What was acknowledged survives kills at any moment, signals and a full disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from support import (
    NAMES,
    RawClient,
    clients,
    random_payload,
    running,
    serve_finished,
    tiny_config,
    whole_run,
)

from common.config import RunConfig
from common.errors import StorageError
from common.model.export import load_model
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from server.app import serve
from server.frame_log import FrameLog
from server.journal import Journal
from server.recovered import StoredUpdate


def test_restarted_at_every_moment_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory as it stood after every single entry, resumed."""
    # alpha, a share of the clients and cells, so that scores, ranks, sampling and tables take part.
    output = {"sample_every": 0, "average": 1.0}
    data, round_ = {"labels": "cells"}, {"participation": 0.6}
    config = tiny_config(rounds=2, alpha=0.3, round=round_, output=output, data=data)
    moments: list[Path] = []

    def keep(self: Journal) -> None:
        copy = tmp_path / f"moment-{len(moments)}"
        shutil.copytree(self._directory.parent, copy)
        moments.append(copy)

    with monkeypatch.context() as patch:
        for name in ("_append", "checkpoint", "_start_log"):
            original = getattr(Journal, name)

            def call(self: Journal, *args: object, original: object = original) -> None:
                original(self, *args)  # type: ignore[operator]
                keep(self)

            patch.setattr(Journal, name, call)
        expected = asyncio.run(whole_run(config, tmp_path / "run"))
    # Two rounds of: open, two updates, close, a new log, the checkpoint; and the first log.
    assert len(moments) == 2 * 6 + 1
    model = (tmp_path / "run" / "model.prism").read_bytes()
    assert len(load_model(tmp_path / "run" / "model.prism").cells) >= 2
    for moment in moments:
        assert asyncio.run(resumed_run(config, moment)) == expected, moment.name
        assert (moment / "model.prism").read_bytes() == model, moment.name
        lines = (moment / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == [0, 1]


async def resumed_run(config: RunConfig, out: Path) -> bytes:
    journal = Journal(out, config)
    found = journal.recover()
    journal.close()
    if found.round < config.rounds:
        return await whole_run(config, out)
    await serve_finished(config, out)
    assert found.checkpoint is not None
    return found.checkpoint.state.digest()


def test_finished_right_after_a_restart_it_waits_for_those_who_were_here(tmp_path: Path) -> None:
    config = tiny_config(rounds=1)
    journal = Journal(tmp_path, config)
    journal.recover()
    journal.append_open(0, NAMES)
    for name in NAMES:
        payload = random_payload(config, name, 0)
        digest = hashlib.sha256(payload).digest()
        journal.append_update(StoredUpdate(name, digest, (len(payload),), Report(), payload))
    journal.append_close()
    journal.sync()
    journal.close()

    async def main() -> None:
        async with (
            running(config, tmp_path, to_the_end=True) as address,
            clients(config, address, *NAMES) as all_,
        ):
            # All rounds are closed before anybody is back.
            while (await all_[0].status()).phase != "finished":
                pass
            for client in all_:
                await client.take_part()

    asyncio.run(main())


def test_a_finished_run_says_so_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(rounds=1)
    asyncio.run(whole_run(config, tmp_path))
    model = load_model(tmp_path / "model.prism")
    (tmp_path / "model.prism").unlink()
    caplog.set_level(logging.INFO)
    asyncio.run(serve_finished(config, tmp_path))
    assert "is finished: 1 rounds" in caplog.text
    again = load_model(tmp_path / "model.prism")
    assert again.parameters == model.parameters, "what a crash lost is made again"
    assert not (tmp_path / "address").exists()


class Process:
    """`python -m server` in its own process, ready once made."""

    def __init__(self, config: RunConfig, out: Path) -> None:
        path = out.parent / "config-given.toml"
        path.write_text(config.to_toml())
        command = [sys.executable, "-m", "server", str(path), "--bind", "127.0.0.1:0"]
        self.popen = subprocess.Popen(
            [*command, "--out", str(out)], stderr=subprocess.PIPE, text=True
        )
        self.address = self.until(r"listening on ([\d.:]+)")
        assert self.address == (out / "address").read_text().strip()

    def until(self, pattern: str) -> str:
        """Read what the server says up to a match; its first group."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            if match := re.search(pattern, line):
                return match[1]
        raise AssertionError(f"the server never said {pattern}")

    def kill(self) -> None:
        self.popen.kill()
        self.end()

    def end(self) -> int:
        assert self.popen.stderr is not None
        with self.popen.stderr as stderr:
            stderr.read()
        return self.popen.wait(timeout=30)


def test_killed_in_the_middle_of_a_round_it_goes_on(tmp_path: Path) -> None:
    config = tiny_config(rounds=2)
    expected = asyncio.run(whole_run(config, tmp_path / "uninterrupted"))
    out = tmp_path / "run"

    async def two_of_three(address: str) -> None:
        async with clients(config, address, *NAMES) as all_:
            await asyncio.gather(*(client.join() for client in all_))
            for client in all_[:2]:
                await client.submit(await client.assignment())

    async def the_rest(address: str) -> list[str]:
        async with clients(config, address, *NAMES) as all_:
            for client in all_:
                await client.join()
            first, _, last = all_
            assert (await first.await_round(0)).HasField("wait"), "its update is in"
            again = await first.submit(pb.Assignment(round=0, rank=0, cohort_size=3))
            assert again.duplicate
            assert (await last.assignment()).round == 0
            await last.submit(await last.assignment())
            assert (await first.assignment()).round == 1

            return [client.session for client in all_]

    async def to_the_end(address: str) -> bytes:
        async with clients(config, address, *NAMES) as all_:
            return (await asyncio.gather(*(client.take_part() for client in all_)))[0]

    server = Process(config, out)
    asyncio.run(two_of_three(server.address))
    server.kill()
    server = Process(config, out)
    asyncio.run(the_rest(server.address))
    server.popen.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert not (out / "address").exists()
    server = Process(config, out)
    assert asyncio.run(to_the_end(server.address)) == expected
    assert server.end() == 0
    assert (out / "model.prism").exists() and (out / "samples.png").exists()


def test_sigint_twice_ends_at_once(tmp_path: Path) -> None:
    config = tiny_config(data={"clients": 1})
    server = Process(config, tmp_path / "run")

    async def hold() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = RawClient(config, channel, "ann")
            await client.join()
            header = client.header(await client.assignment(), b"never sent")
            # A call in flight that never ends keeps a graceful stop waiting.
            call = client.stub.SubmitUpdate(metadata=client.metadata)
            await call.write(pb.UpdateChunk(header=header))
            # Answered on the same connection, so the server has that call by now.
            await client.status()
            server.popen.send_signal(signal.SIGINT)
            await asyncio.to_thread(server.until, "(SIGINT): stopping")
            server.popen.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(server.end) == 130

    asyncio.run(hold())


def test_disk_full_stops_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FrameLog, entry: object, payload: bytes = b"") -> None:
        raise OSError(28, os.strerror(28))

    async def main() -> None:
        config = tiny_config()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve(config, "127.0.0.1:0", tmp_path, ready=port.set_result))
        async with clients(config, f"127.0.0.1:{await port}", *NAMES) as all_:
            for client in all_:
                await client.join()
            assignment = await all_[0].assignment()
            monkeypatch.setattr(FrameLog, "append", full)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await all_[0].submit(assignment)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "No space left" in (raised.value.details() or "")
            with pytest.raises(StorageError, match="No space left"):
                await server

    asyncio.run(main())
