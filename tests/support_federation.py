"""A whole federation in this process: a real server and real clients over loopback gRPC."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support import jsonl, running

from client.local_data import PartitionChoice, PrivateData
from client.loop import Client
from client.messages import Security
from client.privacy_guard import Guard
from client.store import ClientStore
from client.transport import Transport
from common.address import Address
from common.cells import CellTable
from common.config import RunConfig
from common.model.export import load_model
from server.journal import Journal, taken_up

CPU = torch.device("cpu")
TINY = """
rounds = 4
[data]
clients = 2
partition = "shards"
[model]
width = 2
latent = 8
image_size = 16
[encoder]
layers = [2, 3]
pool = 1
[train]
local_steps = 2
batch_size = 4
class_batch = 2
[output]
sample_every = 0
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        digest: of the last state.
        parameters: of the exported model, as bytes.
        cells: of the exported model.
        up_bytes: payload bytes of all updates.
        down_bytes: payload bytes of all states that clients fetched.
    """

    digest: str
    parameters: bytes
    cells: CellTable
    up_bytes: int
    down_bytes: int


def private_data(config: RunConfig, index: int) -> PrivateData:
    """As `prism run` starts client number `index`."""
    return PrivateData("digits", None, PartitionChoice(index, config.data.clients), CPU)


def take_part(config: RunConfig, address: str, out: Path, index: int) -> None:
    """What a client process does, from its start to its end."""
    store = ClientStore(out / "clients" / str(index), f"client-{index}")
    transport = Transport(Address.parse(address), Security())
    guard = Guard(store.directory)
    try:
        Client(transport, private_data(config, index), store, guard, patience=60).run()
    finally:
        transport.close()
        store.close()


async def federated(config: RunConfig, out: Path, **options: Any) -> Ended:
    """A real server and real clients over loopback gRPC, each client in a thread."""
    count, loop = config.data.clients, asyncio.get_running_loop()
    # Threads of their own: the default ones are the server's to decode in.
    with ThreadPoolExecutor(count) as threads:
        async with running(config, out, to_the_end=True, **options) as address:
            ends = [
                loop.run_in_executor(threads, take_part, config, address, out, index)
                for index in range(count)
            ]
            await asyncio.gather(*ends)
    journal = Journal(out, taken_up(config, out))
    found = journal.recover().checkpoint
    journal.close()
    assert found is not None and found.state.round == config.rounds
    calls = jsonl(out / "comm.jsonl")

    def payload_bytes(rpc: str, direction: str) -> int:
        wanted = (rpc, direction)
        return sum(c["payload_bytes"] for c in calls if (c["rpc"], c["direction"]) == wanted)

    model = load_model(out / "model.prism")
    return Ended(
        found.state.digest().hex(),
        model.parameters.tobytes(),
        model.cells,
        payload_bytes("SubmitUpdate", "up"),
        payload_bytes("FetchState", "down"),
    )
