"""A small federation whose processes are killed, again and again, and what it leaves.

Servers and clients are real processes, forked from one that has imported everything, so that a new
one is there in a tenth of a second. Which instants they are killed at is drawn from a seed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch
from support import NAMES, RawClient, timeless

from client import transport as transport_module
from client.local_data import PartitionChoice, PrivateData
from client.loop import Client
from client.messages import Security
from client.privacy_guard import Guard
from client.store import ClientStore
from client.transport import Transport
from common.address import Address
from common.config import RunConfig, parse_config
from common.wire import chunks
from server.app import serve
from server.journal import Journal

STARTUP_SECONDS = 0.5
"""About how long a server takes from its start to its first answer."""
_RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.CANCELLED,
}
_PROCESSES = multiprocessing.get_context("forkserver")
# What takes long to import; it finds no modules of the tests.
_PROCESSES.set_forkserver_preload(["server.app", "client.loop", "client.transport", "pytest"])


def serve_process(config: str, out: str, port: Connection) -> None:
    """One server; tells its port."""
    asyncio.run(serve(parse_config(config), "127.0.0.1:0", Path(out), ready=port.send))


class Federation:
    """Three clients of one run, and servers one after the other.

    Args:
        config: the run.
        out: its directory.
        seed: of the instants.

    Attributes:
        kills: servers that were killed so far.
        acknowledged: (round, client) of every update that a client was told is in.
    """

    def __init__(self, config: RunConfig, out: Path, seed: int = 0) -> None:
        self.config = config
        self.out = out
        self.kills = 0
        self.acknowledged: set[tuple[int, str]] = set()
        self._random = random.Random(seed)
        self._address = ""
        self._there = asyncio.Event()
        self._answered = asyncio.Event()

    async def run(self, kills: int) -> None:
        """To the end of the run; servers are killed so many times, if it lasts that long."""
        async with self._clients():
            while True:
                async with self._server() as ended:
                    if self.kills < kills:
                        instant = asyncio.create_task(self._instant())
                        await asyncio.wait({instant, ended}, return_when=asyncio.FIRST_COMPLETED)
                        instant.cancel()
                        if not ended.done():
                            self.kills += 1
                            continue
                    assert await ended == 0, "a server failed by itself"
                    return

    async def _instant(self) -> None:
        """Return when a server that was just started is to be killed."""
        if self._random.random() < 0.2:
            await asyncio.sleep(self._random.uniform(0, STARTUP_SECONDS))
            return
        for _ in range(self._random.randint(0, 5)):
            self._answered.clear()
            await self._answered.wait()
        await asyncio.sleep(self._random.uniform(0, 0.03))

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[asyncio.Future[int | None]]:
        """A server that does not outlive the block; gives its exit status, once it has ended."""
        ours, theirs = _PROCESSES.Pipe(duplex=False)
        words = (self.config.to_toml(), str(self.out), theirs)
        server = _PROCESSES.Process(target=serve_process, args=words, daemon=True)
        server.start()
        theirs.close()
        hearing = asyncio.create_task(self._hear(ours))
        ended = asyncio.create_task(_end_of(server))
        try:
            yield ended
        finally:
            self._there.clear()
            server.kill()
            await asyncio.gather(ended, hearing)
            ours.close()
            server.close()

    async def _hear(self, port: Connection) -> None:
        # A server that is killed before it is ready says nothing.
        with suppress(EOFError):
            self._address = f"127.0.0.1:{await asyncio.to_thread(port.recv)}"
            self._there.set()

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._take_part(name)) for name in NAMES]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise error

    async def _take_part(self, name: str) -> None:
        """What a client does that has no logic but to try again."""
        while True:
            await self._there.wait()
            async with grpc.aio.insecure_channel(self._address) as channel:
                client = RawClient(self.config, channel, name)
                try:
                    await client.join()
                    while (reply := await client.await_round()).WhichOneof("outcome") != "finished":
                        if reply.HasField("assignment"):
                            await client.submit(reply.assignment)
                            self.acknowledged.add((reply.assignment.round, name))
                            self._answered.set()
                    await client.leave()
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _RETRIED:
                        raise
                    await asyncio.sleep(0.01)
                else:
                    return


async def _end_of(process: BaseProcess) -> int | None:
    await asyncio.to_thread(process.join)
    return process.exitcode


async def killed_in_mid_upload(
    config: RunConfig, address: str, states: Path, name: str, index: int, seed: int, kills: int
) -> int:
    """A client of digits to the end of the run, killed so many times; how often it was.

    Each process sends the first update of its life whole, which the one before it was killed over,
    and the next as far as the seed says.
    """
    draw, killed = random.Random(seed), 0
    while True:
        ours, theirs = _PROCESSES.Pipe(duplex=False)
        share = draw.random() if killed < kills else None
        place = PartitionChoice(index, config.data.clients)
        words = (address, str(states / name), name, place, share, killed > 0, theirs)
        process = _PROCESSES.Process(target=client_process, args=words, daemon=True)
        process.start()
        theirs.close()
        try:
            # The process says so when it has sent its share, and nothing if it ends.
            await asyncio.to_thread(ours.recv)
            killed += 1
        except EOFError:
            await asyncio.to_thread(process.join)
            assert process.exitcode == 0, f"{name} failed by itself"
            return killed
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
            ours.close()


def client_process(
    address: str,
    state: str,
    name: str,
    place: PartitionChoice,
    share: float | None,
    again: bool,
    stuck: Connection,
) -> None:
    """One client; with a share, it gets stuck when it has sent that much of an update."""
    to_send = [1.0] * again

    def some(payload: bytes) -> Iterator[bytes]:
        part = to_send.pop() if to_send else share
        if part is None or part == 1:
            yield from chunks(payload)
            return
        yield payload[: int(part * len(payload))]
        stuck.send(name)
        threading.Event().wait()

    transport_module.chunks = some  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    transport = Transport(Address.parse(address), Security())
    data = PrivateData("digits", None, place, torch.device("cpu"), None)
    store = ClientStore(Path(state), name)
    Client(transport, data, store, Guard(store.directory), 60.0).run()


def left(out: Path, config: RunConfig) -> dict[str, Any]:
    """What a finished run left that does not depend on the time: two equal runs leave the same."""
    journal = Journal(out, config)
    try:
        point = journal.recover().checkpoint
    finally:
        journal.close()
    assert point is not None
    calls = [json.loads(line) for line in (out / "comm.jsonl").read_text().splitlines()]
    updates = [timeless(call) for call in calls if "acknowledged" in call]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {
        "state": point.state.digest().hex(),
        "model": (out / "model.prism").read_bytes(),
        "metrics": [timeless(json.loads(line)) for line in lines],
        "updates": sorted(updates, key=lambda call: (call["round"], call["client"])),
    }
