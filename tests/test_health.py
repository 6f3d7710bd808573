"""`prism health` and what it is to a container: an exit code and a line."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from support import running, tiny_config
from support_tls import Authority
from typer.testing import CliRunner, Result

from prism.command_line import build


def ask(address: str, *words: str | Path) -> Result:
    return CliRunner().invoke(build(), ["health", "--server", address, *map(str, words)])


def test_a_server_is_well_until_it_is_gone(tmp_path: Path) -> None:
    async def main() -> str:
        async with running(tiny_config(), tmp_path) as address:
            done = await asyncio.to_thread(ask, address)
            assert (done.exit_code, done.output) == (0, f"{address} is well\n")
            return address

    address = asyncio.run(main())
    done = ask(address, "--seconds", "2")
    assert done.exit_code == 1
    assert done.output.startswith(f"prism health: nothing listens at {address}: ")
    assert done.output.count("\n") == 1


def test_a_server_with_mutual_tls_is_asked_with_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    options = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca}
    own = authority.issue("health")

    async def main() -> None:
        async with running(tiny_config(), tmp_path / "run", **options) as address:
            ca = ("--ca", authority.ca)
            done = await asyncio.to_thread(
                ask, address, *ca, "--cert", own[0], "--key", own[1], "--seconds", "10"
            )
            assert done.exit_code == 0, done.output
            # Nobody took part.
            assert '"client": "health"' not in (tmp_path / "run" / "comm.jsonl").read_text()
            for words, told in (((), "speaks TLS"), (ca, "asks clients for a certificate")):
                done = await asyncio.to_thread(ask, address, *words, "--seconds", 2)
                assert done.exit_code == 1
                assert told in done.output

    asyncio.run(main())


def test_one_that_takes_calls_and_never_answers_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = ask(f"127.0.0.1:{silent.getsockname()[1]}", "--seconds", "0.5")
    assert done.exit_code == 1
    assert "takes connections and says nothing" in done.output


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0:7070"])
def test_an_address_that_nobody_can_be_reached_by(address: str) -> None:
    done = ask(address)
    assert done.exit_code == 1
    assert done.output.startswith("prism health: ")
