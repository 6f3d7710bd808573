"""A server is alive, holds the same state and gives nothing away, whatever it is asked.

A few hundred requests to each kind of run here; `make fuzz` makes 50,000: PRISM_FUZZ_CALLS says how
many.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support import NAMES, RawClient, clients, running, tiny_config
from support_fuzz_service import Call

from common.rpc.prism.v1 import federation_pb2 as pb
from server import limits

COUNT = int(os.environ.get("PRISM_FUZZ_CALLS", "1200"))
BATCH = 1000
"""Requests to one server."""
AT_ONCE = 8
RUNS: tuple[dict[str, Any], ...] = (
    {"alpha": 0.3},
    {"data": {"labels": "cells"}, "codec": {"down": "exact"}},
    {"method": "fedavg"},
)
REFUSALS = {
    grpc.StatusCode[name]
    for name in (
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "ALREADY_EXISTS",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    )
}
LEAK = re.compile(r"Traceback|\.py\b|0x[0-9a-f]{6}|Error\b|object at", re.ASCII)
ROUND = {"lease_seconds": 3600.0, "deadline_seconds": 3600.0}


def check_answer(call: Call, answer: Any, out: Path) -> None:
    if isinstance(answer, bytes):
        return
    said = answer.details() or ""
    assert answer.code() in REFUSALS, f"{call.rpc}: {answer.code()}: {said}"
    assert said.isprintable() and len(said) < 1000, said
    assert not LEAK.search(said) and str(out) not in said, said


def check_log(records: list[logging.LogRecord], out: Path) -> None:
    for record in records:
        line = record.getMessage()
        assert record.exc_info is None and record.levelno < logging.ERROR, line
        assert line.isprintable() and "Traceback" not in line, line
        if record.name == "server.interceptors":
            assert str(out) not in line, line


async def batch(first: int, count: int, out: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(round=ROUND, **changes)
    async with running(config, out) as address, clients(config, address, *NAMES) as all_:
        for client in all_:
            await client.join(wants_partition=True)
        ranks = {client.name: (await client.assignment()).rank for client in all_}
        cohort = sorted(ranks, key=ranks.__getitem__)
        before = await all_[0].status()
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> None:
            # The last client has no part in it, so the round cannot close.
            call = Call(random.Random(f"call {seed}"), all_[:2], cohort, before.state_digest)
            async with turn:
                answer = await call.make(all_[0].channel)
                check_answer(call, answer, out)
                await renewed(call, answer)

        async def renewed(call: Call, answer: Any) -> None:
            if isinstance(answer, bytes) and call.rpc in {"Join", "Leave"}:
                await call.client.join(wants_partition=True)

        for start in range(first, first + count, 100):
            seeds = range(start, min(start + 100, first + count))
            await asyncio.gather(*map(one, seeds))
        await unharmed(all_, before)


async def unharmed(all_: list[RawClient], before: pb.GetStatusResponse) -> None:
    """The state is the same, and the round closes with the updates of those who are honest."""
    after = await all_[0].status()
    assert (after.state_digest, after.round) == (before.state_digest, before.round)
    for client in all_:
        await client.join(wants_partition=True)
        if (reply := await client.await_round(0)).HasField("assignment"):
            await client.submit(reply.assignment)
    while (await all_[0].status()).round == before.round:
        pass


@pytest.mark.parametrize("run", RUNS, ids=["prism", "cells", "fedavg"])
def test_no_request_does_any_harm(
    tmp_path: Path,
    run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Otherwise most would be turned away before anybody looks at them.
    for name in ("QUESTIONS", "LEAST_JOINS", "LEAST_WASTE"):
        monkeypatch.setattr(limits, name, 10**12)
    caplog.set_level(logging.INFO)
    share = -(-COUNT // len(RUNS))
    for number, start in enumerate(range(0, share, BATCH)):
        out = tmp_path / str(number)
        asyncio.run(batch(start, min(BATCH, share - start), out, run))
        check_log(caplog.records, out)
        caplog.clear()
