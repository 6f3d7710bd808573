"""Places: their certificates, who takes which, and that who takes one again is the same client."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest
from support import background, jsonl, running, tiny_config
from typer.testing import CliRunner, Result

from client.places import Place
from common.errors import ConfigError
from common.pem import host_names, load_certificates
from prism.command_line import build

HOSTS = ("server", "localhost", "127.0.0.1")


def prism(*words: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(word) for word in words])


def furnish(folder: Path, *words: str | Path, hosts: tuple[str, ...] = HOSTS) -> str:
    done = prism(
        "certs",
        "federation",
        *hosts,
        *("--dir", folder / "authority"),
        *("--server-dir", folder / "tls"),
        *("--places", folder / "places"),
        *words,
    )
    assert done.exit_code == 0, done.output
    return done.output


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_each_key_lies_where_it_is_used_and_nowhere_else(tmp_path: Path) -> None:
    assert "6 certificates made" in furnish(tmp_path, "--clients", "3")
    there = contents(tmp_path)
    pairs = {"authority/ca", "tls/server", "tls/health"}
    pairs |= {f"places/client-{i}/client-{i}" for i in (1, 2, 3)}
    cas = {"tls/ca.pem", *(f"places/client-{i}/ca.pem" for i in (1, 2, 3))}
    assert set(there) == {pair + end for pair in pairs for end in (".pem", ".key")} | cas
    assert {there[ca] for ca in cas} == {there["authority/ca.pem"]}
    keys = [name for name in there if name.endswith(".key")]
    assert len({there[key] for key in keys}) == len(keys)
    assert {stat.S_IMODE((tmp_path / key).stat().st_mode) for key in keys} == {0o600}


def test_what_is_good_stays_and_what_is_not_is_made_anew(tmp_path: Path) -> None:
    def changed(*words: str, **options: tuple[str, ...]) -> set[str]:
        before = contents(tmp_path)
        furnish(tmp_path, *words, **options)
        return {name for name, content in contents(tmp_path).items() if before.get(name) != content}

    furnish(tmp_path, "--clients", "2", "--days", "29")
    ends_soon = contents(tmp_path).keys() - {"authority/ca.pem", "authority/ca.key"}
    assert changed("--clients", "2") == {name for name in ends_soon if "ca.pem" not in name}
    assert changed("--clients", "2") == set()
    server = {"tls/server.pem", "tls/server.key"}
    assert changed("--clients", "2", hosts=(*HOSTS, "fl.example.org")) == server
    _, (certificate, *_) = load_certificates(tmp_path / "tls" / "server.pem")
    assert set(host_names(certificate)) == {*HOSTS, "fl.example.org"}

    hosts = (*HOSTS, "fl.example.org")
    first = tmp_path / "places" / "client-1"
    (first / "client-1.key").unlink()
    (first / "ca.pem").unlink()
    first = {"places/client-1/client-1.pem", "places/client-1/client-1.key"}
    assert changed("--clients", "2", hosts=hosts) == first | {"places/client-1/ca.pem"}
    third = {f"places/client-3/{name}" for name in ("ca.pem", "client-3.pem", "client-3.key")}
    assert changed("--clients", "3", hosts=hosts) == third

    # What another authority signed is of no use, though it is valid.
    for name in ("ca.pem", "ca.key"):
        (tmp_path / "authority" / name).unlink()
    assert len(changed("--clients", "3", hosts=hosts)) == 16


def test_places_are_taken_in_natural_order_and_by_one_client_each(tmp_path: Path) -> None:
    furnish(tmp_path, "--clients", "10")
    places = tmp_path / "places"
    (places / "lost+found").mkdir()
    held = [Place.take(places) for _ in range(10)]
    assert [place.security.proven_name() for place in held] == [f"client-{i}" for i in range(1, 11)]
    second = held[1]
    assert second.state == places / "client-2" / "state"
    assert second.security.ca == places / "client-2" / "ca.pem"
    with pytest.raises(ConfigError, match=r"all places in .* are taken, 10 of them"):
        Place.take(places)
    second.close()
    held.append(Place.take(places))
    assert held[-1].security.proven_name() == "client-2"
    for place in held:
        place.close()


def test_what_is_no_place_is_named(tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(ConfigError) as raised:
            Place.take(tmp_path / "places")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "No such file" in refusal()
    (tmp_path / "places").mkdir()
    assert "has no place" in refusal()
    furnish(tmp_path, "--clients", "1")
    place = tmp_path / "places" / "client-1"
    (place / "another.key").touch()
    assert "more than one key" in refusal()
    (place / "another.key").unlink()
    (place / "client-1.pem").unlink()
    assert "client-1.pem: No such file" in refusal()
    done = prism("client", "--server", "h:1", "--data", "digits", "--places", "p", "--name", "ann")
    assert "--places has its own --name" in done.output


def test_who_takes_a_place_again_is_the_same_client(tmp_path: Path) -> None:
    furnish(tmp_path, "--clients", "1")
    tls = tmp_path / "tls"
    options = {
        "tls_cert": tls / "server.pem",
        "tls_key": tls / "server.key",
        "client_ca": tls / "ca.pem",
    }
    config = tiny_config(data={"clients": 1}, rounds=400, encoder={"layers": [3], "pool": 1})
    run, log = tmp_path / "run", tmp_path / "client.log"
    kept = tmp_path / "places" / "client-1" / "state" / "client.json"

    async def submitted(count: int) -> None:
        lines: list[dict[str, object]] = []
        while len(lines) < count:
            await asyncio.sleep(0.05)
            found = jsonl(run / "comm.jsonl") if (run / "comm.jsonl").exists() else []
            lines = [line for line in found if line["rpc"] == "SubmitUpdate"]
        assert {line["client"] for line in lines} == {"client-1"}

    async def main() -> None:
        async with running(config, run, **options) as address:
            words = ("-m", "client", "--server", address, "--data", "digits", "--threads", "1")
            words += ("--places", str(tmp_path / "places"), "--partition", "auto")
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            identity = ""
            for rounds in (2, 6):
                with background(log, *words, env=environment):
                    await asyncio.wait_for(submitted(rounds), 120)
                assert identity in ("", kept.read_text())
                identity = kept.read_text()
                assert json.loads(identity)["name"] == "client-1"

    asyncio.run(main())
    assert log.read_text().count("joined as client-1") == 2
    assert log.read_text().count("took up the training state") == 1
