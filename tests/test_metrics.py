"""Prometheus metrics of server and clients: what is told, when, and of whom."""

from __future__ import annotations

import asyncio
import urllib.error
from pathlib import Path

import pytest
from support import CODE, clients, refused, running, tiny_config
from support_metrics import METRICS, fetched, seen, values
from test_end_to_end import free_port

import client.telemetry
from client.telemetry import Doing
from common.errors import ConfigError, WrongRound
from server.telemetry import Telemetry


def test_what_a_closed_round_was_is_told() -> None:
    telemetry = Telemetry()
    telemetry.started(2, 9)
    assert not {"prism_lambda", "prism_loss"} & values(telemetry.registry).keys()
    telemetry.closed(METRICS)
    telemetry.evaluated({"round": 4, "FD (small)": 12.5, "seconds": 1.0, "generated": 10})
    told = values(telemetry.registry)
    assert {
        "prism_round": 4,
        "prism_rounds_planned": 9,
        "prism_rounds_total": 1,
        "prism_lambda": 0.5,
        "prism_mask_entropy_bits": 0.3,
        "prism_loss": 0.2,
        "prism_round_seconds_sum": 7,
        "prism_update_seconds_sum": 5,
        "prism_updates_total": 2,
        "prism_updates_left_out_total": 1,
        "prism_quality FD (small)": 12.5,
    }.items() <= told.items()
    assert "prism_quality generated" not in told


def test_a_client_tells_what_it_does() -> None:
    telemetry = client.telemetry.Telemetry()
    telemetry.does(Doing.TRAINING, 5)
    telemetry.stepped()
    telemetry.acknowledged(None)
    told = values(telemetry.registry)
    assert told["prism_client_state training"] == 1
    assert sum(told[f"prism_client_state {doing}"] for doing in Doing) == 1
    assert told["prism_client_round"] == 5
    assert told["prism_client_step_seconds_count"] == 1
    assert "prism_client_loss" not in told, "it stays here"
    with pytest.raises(WrongRound), telemetry.errors.counted():
        raise WrongRound("late", 3)
    told = values(telemetry.registry)
    assert told["prism_client_errors_total FAILED_PRECONDITION WrongRound"] == 1
    assert told["prism_client_errors_total UNAVAILABLE TransportError"] == 0


def test_calls_of_a_server_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.app.LOOK_SECONDS", 0.01)
    where, config = f"127.0.0.1:{free_port()}", tiny_config()
    url = f"http://{where}/metrics"

    async def main() -> None:
        async with (
            running(config, tmp_path / "run", metrics=where) as address,
            clients(config, address, "ann", "bob", "cleo") as (ann, bob, cleo),
        ):
            for one in (ann, bob, cleo):
                await one.join()
            assignment = await ann.assignment()
            await ann.submit(assignment)
            await refused(ann.submit(assignment, salt="other"), CODE.ALREADY_EXISTS)
            await seen(url, "prism_clients done", 1)
            await seen(url, "prism_clients training", 2)
            told = await seen(url, "prism_errors_total ALREADY_EXISTS AlreadyExists", 1)
            sent = len(ann.payload(0))
            # Of the one that was refused, the header was enough.
            assert told["prism_payload_bytes_total up SubmitUpdate"] == sent
            assert told["prism_message_bytes_total up SubmitUpdate"] > sent
            assert told["prism_message_bytes_total up Join"] > 0
            assert told["prism_journal_bytes"] > sent
            assert told["prism_uploads queued"] == 0

    asyncio.run(main())
    with pytest.raises(urllib.error.URLError):
        fetched(url)


def test_an_address_that_cannot_be_had_claims_no_directory(tmp_path: Path) -> None:
    async def main(where: str) -> None:
        async with running(tiny_config(), tmp_path / "run", metrics=where):
            pass

    with pytest.raises(ConfigError, match="cannot listen on"):
        asyncio.run(main("192.0.2.1:9464"))
    assert not (tmp_path / "run").exists()
