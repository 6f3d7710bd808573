"""Clients that say nothing, die or are made anew, as processes of their own: rounds go on."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support import RawClient, background, clients, jsonl

from common.config import load_config
from common.rpc.prism.v1 import federation_pb2 as pb

TIMEOUT = 120
DEADLINE = 8.0
CONFIG = f"""
rounds = 1000000
[data]
name = "digits"
clients = 2
labels = "ignore"
[model]
width = 2
latent = 8
image_size = 16
[encoder]
layers = [3]
pool = 1
[train]
local_steps = 1
batch_size = 2
[round]
deadline_seconds = {DEADLINE}
lease_seconds = 4
[output]
sample_every = 0
"""
CLIENT = """
import sys
import client.local_data, client.loop, client.transport
from client.__main__ import main
sys.argv += sys.stdin.readline().split()
main()
"""
"""A client that has imported everything when its command line comes, and joins at once."""
Process = subprocess.Popen[bytes]


class Federation:
    """One server and clients, and what they write."""

    def __init__(self, folder: Path, stack: ExitStack, *changes: str) -> None:
        self._folder, self._stack = folder, stack
        self.out = folder / "out"
        (folder / "c.toml").write_text(CONFIG)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.serve(*changes)

    def serve(self, *changes: str) -> None:
        """Start the server, for the first time or again."""
        words = [
            "-m",
            "prism",
            "server",
            self._folder / "c.toml",
            "--out",
            self.out,
            "--bind",
            self.address,
        ]
        words += [f"--set={change}" for change in changes]
        self.server = self._start("server", *words)

    def prepare(self, *names: str) -> list[Process]:
        """Start client processes that do nothing before they are let in."""
        return [self._start(name, "-c", CLIENT, stdin=subprocess.PIPE) for name in names]

    def let_in(self, process: Process, name: str, partition: str = "") -> None:
        """Have a client join, by default with a hundredth of the images."""
        assert process.stdin is not None
        words = f"--server {self.address} --name {name} --state {self._folder / name}-state"
        words += f" --data digits --partition {partition or f'{ord(name[0]) % 100}/100'}"
        process.stdin.write(f"{words} --threads 1\n".encode())
        process.stdin.flush()

    def log(self, name: str) -> str:
        return (self._folder / name).read_text()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the rounds that were closed."""
        path = self.out / "metrics.jsonl"
        return jsonl(path) if path.exists() else []

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Poll files that the processes write."""
        until = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < until, self.log("server")
            time.sleep(0.02)

    def said(self, name: str, pattern: str) -> None:
        """Wait until a process says something."""
        self.wait_for(lambda: re.search(pattern, self.log(name)))

    def _start(self, name: str, *words: str | Path, **options: Any) -> Process:
        return self._stack.enter_context(background(self._folder / name, *words, **options))


def test_a_client_that_only_sends_heartbeats_costs_one_deadline(tmp_path: Path) -> None:
    async def silent(run: Federation) -> None:
        config = load_config(run.out / "config.toml")
        async with clients(config, run.address, "silent") as (one,):
            await one.join()
            beats = asyncio.create_task(beat(one))
            # Rounds 0 and 1; in round 2 it is asked again.
            await asyncio.to_thread(run.wait_for, lambda: len(run.metrics()) >= 2)
            beats.cancel()

    async def beat(one: RawClient) -> None:
        while True:
            await one.stub.Heartbeat(pb.HeartbeatRequest(), metadata=one.metadata)
            await asyncio.sleep(0.3)

    with ExitStack() as stack:
        run = Federation(tmp_path, stack, "data.clients=4")
        honest = ("ann", "bob", "cleo")
        for process, name in zip(run.prepare(*honest), honest, strict=True):
            run.let_in(process, name)
        for name in honest:
            # Prepared: nothing but training is left to be done when the round opens.
            run.said(name, "waiting: round 0: waiting for clients")
        asyncio.run(silent(run))
    first, second = run.metrics()[:2]
    assert first["clients"] == second["clients"] == 3
    assert DEADLINE <= first["seconds"] < 2 * DEADLINE and second["seconds"] < DEADLINE / 2
    assert "round 0: silent is left out until round 2 because it missed a deadline" in run.log(
        "server"
    )


def test_rounds_go_on_without_a_client_that_died_and_with_it_when_it_is_back(
    tmp_path: Path,
) -> None:
    def seconds(clients: int, since: int = 0) -> list[float]:
        """Of the rounds that so many clients took part in."""
        return [line["seconds"] for line in run.metrics()[since:] if line["clients"] == clients]

    with ExitStack() as stack:
        run = Federation(tmp_path, stack)
        ann, bob, again = run.prepare("ann", "bob", "bob-again")
        run.let_in(ann, "ann")
        run.let_in(bob, "bob")
        run.wait_for(lambda: len(seconds(2)) >= 2)
        bob.kill()
        killed = len(run.metrics())
        run.wait_for(lambda: len(seconds(1, killed)) >= 4)
        first, *later = seconds(1, killed)[:4]
        run.said("server", "bob is gone: its lease ran out")
        back = len(run.metrics())
        run.let_in(again, "bob")
        run.wait_for(lambda: seconds(2, back))
    assert first < DEADLINE + 1
    assert max(later) < DEADLINE / 2


def test_a_client_made_anew_waits_for_a_place_after_a_restart_of_the_server(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        run = Federation(tmp_path, stack)
        ann, bob, new = run.prepare("ann", "bob", "new")
        run.let_in(ann, "ann", "auto")
        run.let_in(bob, "bob", "auto")
        run.wait_for(lambda: len(run.metrics()) >= 2)
        for process in (run.server, bob):
            process.kill()
            process.wait()
        (run.out / "address").unlink()
        run.serve("round.deadline_seconds=60", "round.grace_seconds=15")
        run.wait_for((run.out / "address").exists)
        run.let_in(new, "new", "auto")
        run.said("new", r"all 2 data partitions are held, by .*; the server was restarted and")
        run.said("new", "joined as new")
        run.said("server", "bob is gone: it did not come back within 15 s")
        run.said("new", r"round \d+: state ")
        closed = len(run.metrics())
        run.wait_for(lambda: [line["clients"] for line in run.metrics()[closed:]].count(2) >= 2)
        assert ann.poll() is new.poll() is None
    assert "round.deadline_seconds is 60.0 from round" in run.log("server")
    assert load_config(run.out / "config.toml").round.deadline_seconds == 60
