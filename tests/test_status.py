"""`prism status`: a real server is asked, by one who may know names and by one who may not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support import CODE, NAMES, clients, federation, refused, running, tiny_config
from support_tls import Authority
from test_end_to_end import free_port
from typer.testing import CliRunner, Result

import prism.commands.status
from client.status import Status
from common.address import Address
from common.errors import Busy
from prism.command_line import build
from prism.figures_text import sparkline
from prism.status_text import status_lines
from server.recent import Recent


def ask(address: str, *words: str | Path) -> Result:
    return CliRunner().invoke(build(), ["status", "--server", address, *map(str, words)])


async def asked(address: str, *words: str | Path) -> str:
    done = await asyncio.to_thread(ask, address, *words)
    assert done.exit_code == 0, done.output
    return done.output


async def told(address: str, *words: str | Path) -> dict[str, Any]:
    return json.loads(await asked(address, "--json", *words))


def test_an_open_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()

    async def main() -> None:
        async with (
            running(config, tmp_path / "run") as address,
            clients(config, address, *NAMES) as (ann, bob, cleo),
        ):
            said = await asked(address)
            assert "waiting for clients, 0 of 3 are here" in said
            for one in (ann, bob, cleo):
                await one.join()
            for one in (ann, bob, cleo):
                first = await one.assignment()
                await one.submit(first)
            second = await ann.assignment()
            await ann.submit(second)
            await refused(ann.submit(second, salt="other"), CODE.ALREADY_EXISTS)
            for _ in range(2):
                await refused(bob.submit(first), CODE.FAILED_PRECONDITION)

            status = await told(address)
            assert (status["round"], status["rounds"], status["phase"]) == (1, 3, "open")
            assert status["state_digest"] == second.state_digest.hex()
            assert status["waits_for"].startswith("round 1: waiting for the update of bob, cleo")
            assert {one["name"]: one["state"] for one in status["clients"]} == {
                "ann": "done",
                "bob": "training",
                "cleo": "training",
            }
            sent = len(ann.payload(0))
            assert [one["payload_bytes"] for one in status["clients"]] == [sent] * 3
            assert all(one["seconds"] > 0 for one in status["clients"])
            assert status["seconds_left"] > 0
            late, twice = status["problems"]
            assert (late["code"], late["times"]) == ("FAILED_PRECONDITION", 2)
            assert late["caller"].startswith("bob at ")
            assert twice["error"] == "AlreadyExists"

            said = await asked(address)
            assert ": round 1 of 3, open for 0:0" in said
            assert any(line.split()[:2] == ["ann", "done"] for line in said.splitlines())
            assert "SubmitUpdate of bob at " in said and "(2 times)" in said

            monkeypatch.setattr(Address, "is_loopback", False)
            status = await told(address)
            assert [one["name"] for one in status["clients"]] == ["", "", ""]
            assert (status["waits_for"], status["problems"]) == ("", [])
            monkeypatch.undo()

    asyncio.run(main())


def test_who_left_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as (ann, bob, _):
            await ann.assignment()
            await bob.leave()
            status = await ann.status()
            assert [one.standing for one in status.clients] == ["training", "gone", "training"]

    asyncio.run(main())


def test_what_was_lately() -> None:
    recent = Recent()
    assert recent.seconds_left(5) is None
    recent.closed(2.0)
    recent.closed(4.0)
    assert recent.seconds_left(5) == 15
    recent.evaluated({"round": 4, "FD (small)": 12.5, "seconds": 1.0, "generated": 10})
    assert recent.quality == (4, {"FD (small)": 12.5})
    for number in range(100):
        recent.failed("Join", f"a stranger at 10.0.0.{number}:1", f"10.0.0.{number}", Busy("no", 1))
    assert len(recent.problems) == 20
    assert recent.problems[0].caller == "a stranger at 10.0.0.99:1"


def test_what_a_server_sends_cannot_steer_a_terminal() -> None:
    status = Status("run\x1b[2J", "open", 1, 3, "", 5.0, "", None, 1, {"FD": 2.0}, (), ())
    first, second = status_lines(status)
    assert first == "run?[2J: round 1 of 3, open for 0:05"
    assert second == "quality after 1 rounds: FD 2"


def test_watching_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prism.commands.status, "EVERY_SECONDS", 0.01)
    config = tiny_config()

    async def main() -> list[dict[str, Any]]:
        async with (
            running(config, tmp_path / "run", to_the_end=True) as address,
            clients(config, address, *NAMES) as (ann, *others),
        ):
            await ann.join()
            watching = asyncio.create_task(asked(address, "--json", "--watch"))
            rest = asyncio.gather(*(other.take_part() for other in others))
            while (reply := await ann.await_round()).WhichOneof("outcome") != "finished":
                if reply.HasField("assignment"):
                    await ann.submit(reply.assignment)
            # The server waits for whoever has not left yet, so it is there to be asked.
            lines = (await watching).splitlines()
            await asyncio.gather(ann.leave(), rest)
            return [json.loads(line) for line in lines]

    seen = asyncio.run(main())
    assert seen[-1]["phase"] == "finished"
    assert [one["round"] for one in seen] == sorted(one["round"] for one in seen)


def test_with_mutual_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    options = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca}
    own = authority.issue("ann")

    async def main() -> None:
        async with running(tiny_config(), tmp_path / "run", **options) as address:
            words = ("--ca", authority.ca, "--cert", own[0], "--key", own[1], "--seconds", "10")
            assert (await told(address, *words))["phase"] == "waiting"

    asyncio.run(main())


def test_nobody_answers() -> None:
    done = ask(f"127.0.0.1:{free_port()}", "--seconds", "2", "--watch")
    assert done.exit_code == 1
    assert done.output.startswith("prism status: nothing listens at ")
    assert done.output.count("\n") == 1


def test_a_sparkline_goes_from_the_least_to_the_greatest() -> None:
    assert sparkline([3, 1, 2]) == "█▁▅"
    assert sparkline([]) == ""
    assert set(sparkline([2, 2])) == {"▁"}
