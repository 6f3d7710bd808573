"""Clients that come late or fall behind, as processes of their own: all train on one state."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from support import background, jsonl

from common.config import load_config
from common.model.architecture import Architecture

TIMEOUT = 120
LATE = 50
"""The round at which the newcomer is let in; differences are kept for fewer."""
MISSED = 5
"""Rounds that the sleeper misses at least."""
CONFIG = """
rounds = 1000000
[data]
name = "digits"
clients = 3
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
[codec]
up = "flips"
[round]
min_clients = 2
quorum = 0.5
lease_seconds = 1.5
grace_seconds = 0
[output]
sample_every = 0
"""
WAITING_CLIENT = """
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

    def __init__(self, folder: Path, down: str, names: tuple[str, ...], stack: ExitStack) -> None:
        self._folder = folder
        self.out = folder / "out"
        (folder / "c.toml").write_text(CONFIG)
        command = ("-c", WAITING_CLIENT)
        self._clients = {
            name: stack.enter_context(background(folder / name, *command, stdin=subprocess.PIPE))
            for name in names
        }
        words = ("server", folder / "c.toml", "--set", f"codec.down={down}", "--out", self.out)
        words += ("--bind", "127.0.0.1:0")
        self.server = stack.enter_context(background(folder / "server", "-m", "prism", *words))
        self.wait_for((self.out / "address").exists)

    def let_in(self, name: str, index: int) -> None:
        stdin = self._clients[name].stdin
        assert stdin is not None
        address = (self.out / "address").read_text().strip()
        # A hundredth of the images: nothing here is about them.
        words = f"--server {address} --name {name} --data digits --partition {index}/100"
        stdin.write(f"{words} --threads 1\n".encode())
        stdin.flush()

    def send(self, name: str, what: signal.Signals) -> None:
        self._clients[name].send_signal(what)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Poll files; whoever writes them must be alive meanwhile."""
        until = time.monotonic() + TIMEOUT
        while not condition():
            for process in (self.server, *self._clients.values()):
                assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)

    def closed(self) -> int:
        """Rounds that were closed."""
        lines = self.out / "metrics.jsonl"
        return lines.read_bytes().count(b"\n") if lines.exists() else 0

    def opened(self) -> dict[int, str]:
        """Digest of the state that each round started from, by the server."""
        return self._digests("server", r"round (\d+) is open .* state ([0-9a-f]{12})$")

    def trained(self, name: str) -> dict[int, str]:
        """Digest of the state that a client trained on, by round."""
        return self._digests(name, r"round (\d+): state ([0-9a-f]{12}), ")

    def fetched(self, name: str) -> dict[int, int]:
        """Payload bytes of the states that a client fetched, by round."""
        return {
            line["round"]: line["payload_bytes"]
            for line in jsonl(self.out / "comm.jsonl")
            if (line["client"], line["rpc"], line["direction"]) == (name, "FetchState", "down")
            and line["payload_bytes"]
        }

    def _digests(self, name: str, pattern: str) -> dict[int, str]:
        found = re.findall(pattern, (self._folder / name).read_text(), re.MULTILINE)
        return {int(round_): digest for round_, digest in found}


@pytest.mark.parametrize("down", ["error-feedback", pytest.param("exact", marks=pytest.mark.slow)])
def test_late_and_sleeping_clients_train_on_the_same_states(tmp_path: Path, down: str) -> None:
    names = ("steady", "sleeper", "newcomer")
    with ExitStack() as stack:
        run = Federation(tmp_path, down, names, stack)
        run.let_in("steady", 0)
        run.let_in("sleeper", 1)
        run.wait_for(lambda: run.closed() >= LATE)
        run.let_in("newcomer", 2)
        run.wait_for(lambda: bool(run.trained("newcomer")))

        run.send("sleeper", signal.SIGSTOP)
        asleep = run.closed()
        # The round that is open, and one whose line is not yet written, may be the sleeper's too.
        run.wait_for(lambda: run.closed() >= asleep + MISSED + 2)
        # Without the newcomer too few are here, so however slowly the sleeper wakes up, it is
        # no further behind.
        run.send("newcomer", signal.SIGSTOP)
        run.send("sleeper", signal.SIGCONT)
        run.wait_for(lambda: max(run.trained("sleeper")) > asleep + MISSED)
        run.send("newcomer", signal.SIGCONT)
        back = run.closed()
        run.wait_for(lambda: max(run.trained("newcomer")) >= back)
        run.server.terminate()
        run.server.wait(TIMEOUT)

    for name in names:
        assert run.trained(name).items() <= run.opened().items(), name
        assert len(run.trained(name)) > 1
    assert len(set(run.opened().values())) == len(run.opened())

    fetched = {name: run.fetched(name) for name in names}
    keyframe = fetched["newcomer"][first := min(fetched["newcomer"])]
    assert first >= LATE
    d = Architecture.of(load_config(run.out / "config.toml")).dimension
    assert d < keyframe < 2 * d
    ((held, wanted),) = (
        pair for pair in pairwise(sorted(fetched["sleeper"])) if pair[1] - pair[0] > MISSED
    )
    differences = [size for round_, size in fetched["steady"].items() if held < round_ <= wanted]
    assert fetched["sleeper"][wanted] == sum(differences) < keyframe
