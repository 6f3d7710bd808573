"""A server that leaves updates out: named, not counted, and the same after every crash."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import NAMES, jsonl, timeless, tiny_config, whole_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_restart import resumed_run

from common.cells import CODE_SIZE, CellTable
from common.config import RunConfig
from common.downlink import initial_state
from common.masks import pack
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from common.seeding import uniform16
from common.state import sigma
from server.attempt import Attempt
from server.engine import Engine
from server.figures import Rows
from server.journal import Journal
from server.methods import make_aggregator
from server.recovered import StoredUpdate

ATTACKER = "bob"
CONFIG = tiny_config(rounds=2, robust="trim", model={"width": 2, "latent": 8})


def payload_of(config: RunConfig, name: str, round_: int, salt: str = "") -> bytes:
    """Of an honest client the state's mask with a few flips; the attacker inverts it."""
    state = initial_state(config)
    flipped = uniform16(state.dimension, 1, "test-flips", name, round_, salt) < 3000
    bits = (sigma(state.scores) > 32768) ^ flipped
    return pack(~bits if name == ATTACKER else bits).tobytes()


@pytest.fixture(autouse=True)
def _mostly_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "random_payload", payload_of)


def rounds_of(out: Path) -> Any:
    """The lines of metrics without their times."""
    return timeless(jsonl(out / "metrics.jsonl"))


def test_who_is_left_out_is_named_and_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = CONFIG.model_copy(update={"rounds": 1})
    digest = asyncio.run(whole_run(one, tmp_path))
    aggregator = make_aggregator(one, initial_state(one), len(NAMES))
    for rank, name in enumerate(NAMES):
        if name != ATTACKER:
            aggregator.fold(aggregator.decode([payload_of(one, name, 0)], rank))
    assert aggregator.close().state.digest() == digest

    (line,) = jsonl(tmp_path / "metrics.jsonl")
    assert (line["left_out"], line["clients"]) == ([ATTACKER], 2)
    assert sorted(line["updates"]) == sorted(NAMES)
    for name, update in line["updates"].items():
        assert update["left_out"] == (name == ATTACKER)
        assert (update["from_state"] > 0.9) == (name == ATTACKER)
        assert 0 < update["density"] < 1 and update["moved"] is None
        assert update["from_cohort"] > (0.5 if name == ATTACKER else 0.3)
        assert update["bytes"] == -(-initial_state(one).dimension // 8)
        assert update["seconds"] >= 0
    (said,) = (record.getMessage() for record in caplog.records if "left out" in record.msg)
    assert said.startswith(f"round 0: left out, far from the others: {ATTACKER} (9")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (drawn,) = events.Scalars(f"update_from_state/{ATTACKER}")
    assert drawn.value == pytest.approx(line["updates"][ATTACKER]["from_state"])


def test_a_report_that_is_left_out_does_not_count() -> None:
    """Neither do its classes and cells, nor the loss that its client claims."""
    config = tiny_config(robust="trim", data={"labels": "cells"}, model={"width": 2, "latent": 8})
    attempt = Attempt(config, initial_state(config), len(NAMES), 0.0)
    stored = {}
    for rank, name in enumerate(NAMES):
        payload = payload_of(config, name, 0)
        wrong = name == ATTACKER
        cells = CellTable.of([[rank] * CODE_SIZE], [100])
        report = Report(loss=1e30 if wrong else 1.0, classes=(2 if wrong else 1,), cells=cells)
        update = StoredUpdate(name, b"", (len(payload),), report, payload)
        stored[name] = update
        attempt.fold(attempt.decode(update, rank), update, rank)
    closed = attempt.close(lambda: stored)
    assert attempt.left_out == (ATTACKER,)
    assert sorted(attempt.cells) == sorted({*NAMES} - {ATTACKER})
    assert attempt.taught == {1}
    metrics = attempt.metrics(closed.state, closed, 1.0)
    assert (metrics.loss, metrics.clients) == (1.0, 2)


def test_crashed_at_every_moment_the_same_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[Path] = []
    with monkeypatch.context() as patch:
        for name in ("_append", "checkpoint", "_start_log"):
            original = getattr(Journal, name)

            def call(self: Journal, *args: object, original: Any = original) -> None:
                original(self, *args)
                moments.append(tmp_path / f"moment-{len(moments)}")
                shutil.copytree(self._directory.parent, moments[-1])

            patch.setattr(Journal, name, call)
        expected = asyncio.run(whole_run(CONFIG, tmp_path / "run"))
    lines = rounds_of(tmp_path / "run")
    assert [line["left_out"] for line in lines] == [[ATTACKER], [ATTACKER]]
    assert len(moments) == 2 * 7 + 1
    for moment in moments:
        assert asyncio.run(resumed_run(CONFIG, moment)) == expected, moment.name
        assert rounds_of(moment) == lines, moment.name


def test_the_status_has_what_was_measured(tmp_path: Path) -> None:
    """Of two updates none is left out, however far they are apart."""
    two = {"quorum": 0.6, "deadline_seconds": 1.0}
    config = tiny_config(rounds=1, robust="trim", model={"width": 2, "latent": 8}, round=two)

    async def main() -> pb.GetStatusResponse:
        async with support.federation(tmp_path, config) as all_:
            for client in all_[:2]:
                await client.submit(await client.assignment())
            while (await all_[0].status()).phase != "finished":
                await all_[0].await_round(1)
            return await all_[0].status()

    status = asyncio.run(main())
    (line,) = jsonl(tmp_path / "metrics.jsonl")
    rows = line["updates"]
    assert (line["clients"], line["left_out"]) == (2, [])
    assert np.ptp([row["from_state"] for row in rows.values()]) > 0.8
    for client in status.clients:
        assert client.HasField("measured") == (client.name in rows)
        if client.name in rows:
            row, measured = rows[client.name], client.measured
            assert measured.from_state == row["from_state"] and measured.density == row["density"]
            assert measured.payload_bytes == row["bytes"] and measured.seconds == row["seconds"]
            assert not measured.HasField("moved") and not measured.left_out

    async def resumed() -> Rows:
        engine = Engine(config, tmp_path)
        await engine.close()
        return engine.measured

    assert asyncio.run(resumed()) == rows
