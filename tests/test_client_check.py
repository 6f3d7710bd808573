"""`prism client --check`: each broken setup is named in one line; nobody joins."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from support import running, tiny_config
from support_tls import Authority

from client.check import Setup, check_client
from client.ledger import Entry, Ledger
from client.local_data import PartitionChoice, PrivateData
from client.messages import Security
from common.checklist import Checklist
from common.config import RunConfig
from server import service

CPU = torch.device("cpu")
CONFIG = tiny_config(data={"clients": 3, "min_class_size": 20})


def checked(
    folder: Path,
    config: RunConfig = CONFIG,
    data: str = "digits",
    security: Security | None = None,
    served: dict[str, Any] | None = None,
    choice: str | None = "0/3",
    **setup: Any,
) -> tuple[list[str], list[str]]:
    """All lines, and those that are problems, of a client that would join a real server."""
    said: list[str] = []
    checks = Checklist(said.append)

    async def main() -> None:
        async with running(config, folder / "run", **(served or {})) as address:
            port = address.rpartition(":")[2]
            made = Setup(f"localhost:{port}", security or Security(), **{"name": "ann", **setup})
            images = PrivateData(data, None, PartitionChoice.parse(choice), CPU)
            await asyncio.to_thread(check_client, made, images, checks)
            assert not list((folder / "run").glob("journal/*ann*"))

    asyncio.run(main())
    return said, checks.problems


def folder_of(path: Path, **classes: int) -> str:
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (16, 16), index).save(path / name / f"{index}.png")
    return f"folder:{path}"


def test_a_good_setup(tmp_path: Path) -> None:
    said, problems = checked(tmp_path, state=tmp_path / "state")
    assert problems == []
    text = "\n".join(said)
    for what in (
        "state",
        "server localhost",
        "clock: 0 s",
        "run run: prism, 3 rounds",
        "data",
        "images: 500 of 10 groups",
        "encoder small",
    ):
        assert f"ok       {what}" in text, what
    assert "note     privacy: No formal privacy guarantee" in text
    assert not (tmp_path / "state").exists()


def test_every_unreadable_file_and_classes_with_too_few(tmp_path: Path) -> None:
    config = tiny_config(data={"name": "folder", "classes": ["cat", "dog"], "clients": 1})
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"min_class_size": 20})}
    )
    data = folder_of(tmp_path / "own", cat=30, dog=5)
    said, problems = checked(tmp_path, config, data, choice=None)
    assert problems == []
    assert "note     left out, with fewer than 20 images (data.min_class_size): dog (5)" in said
    for name in ("cat/1.png", "cat/2.png", "dog/0.png"):
        (tmp_path / "own" / name).write_bytes(b"no image")
    _, problems = checked(tmp_path, config, data, choice=None)
    assert [line.split(":")[0].rpartition("/")[2] for line in problems] == [
        "1.png",
        "2.png",
        "0.png",
    ]


def test_certificates(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    ours, theirs = Authority(tmp_path), Authority(tmp_path / "theirs")
    cert, key = ours.issue("localhost", "localhost")
    served = {"tls_cert": cert, "tls_key": key, "client_ca": ours.ca}
    ann, bob, stranger = ours.issue("ann"), ours.issue("bob"), theirs.issue("ann")

    def problem(ca: Path, *own: Path) -> str:
        _, problems = checked(tmp_path, security=Security(ca, *own), served=served)
        (line,) = problems
        return line

    said, problems = checked(tmp_path, security=Security(ours.ca, *ann), served=served)
    assert problems == [] and any("good until" in line for line in said)
    assert "is not signed by the authority in" in problem(theirs.ca, *ann)
    assert "does not take" in problem(ours.ca, *stranger)
    assert "asks clients for a certificate" in problem(ours.ca)
    assert "bob" in problem(ours.ca, *bob)
    assert (
        "is not the key of"
        in checked(tmp_path, security=Security(ours.ca, ann[0], bob[1]), served=served)[1][0]
    )
    _, plain = checked(tmp_path, security=Security(ours.ca))
    assert "speaks plain text, without TLS" in plain[0]


def test_a_clock_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "time", SimpleNamespace(time=lambda: time.time() - 3600))
    _, problems = checked(tmp_path)
    (line,) = problems
    assert line.startswith("clock: this machine's is 3,600 s ahead of the server's")


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PROTOCOL_VERSION", 2)
    _, problems = checked(tmp_path)
    (line,) = problems
    assert "the server speaks protocol 2, the client" in line


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    checks = Checklist(print)
    data = PrivateData("digits", None, None, CPU)
    check_client(Setup(f"127.0.0.1:{port}", Security()), data, checks)
    (line,) = checks.problems
    assert line.startswith(f"nothing listens at 127.0.0.1:{port}: ")


def test_what_the_ledger_would_add_up_to(tmp_path: Path) -> None:
    config = tiny_config(privacy={"mechanism": "moments", "epsilon": 1.0})
    state = tmp_path / "state"
    said, problems = checked(tmp_path, config, state=state, max_epsilon=1.0)
    assert problems == []
    assert any("would add up to at most (1, 1e-05)" in line for line in said)
    state.mkdir()
    entry = Entry(
        "moments", "ab", None, 500, "cd", {"name": "small"}, 9, (1.0,), (4.0,), 1.0, 1e-5, None
    )
    Ledger(state).append(entry)
    said, problems = checked(tmp_path, config, state=state, max_epsilon=1.0)
    (line,) = problems
    assert line.endswith("; 1 releases before: more than --max-epsilon 1")
    assert sorted(path.name for path in state.iterdir()) == ["ledger.head", "ledger.jsonl", "lock"]
    _, problems = checked(tmp_path, config)
    assert any("needs --state DIR" in line for line in problems)
