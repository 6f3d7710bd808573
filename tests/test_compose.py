"""docker-compose.yml, run for real: an engine builds the image and runs a small federation.

`make test-compose` runs it. What the compose file takes from the environment it takes here, too,
such as BASE_IMAGE, TORCH_INDEX and BUILD_NETWORK.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from support import jsonl

from prism import load_model

pytestmark = pytest.mark.compose
CLIENTS = 3
RUN = "/runs/tiny"
ROUNDS = 40
CONFIG = """
name = "tiny"
[data]
name = "digits"
[model]
width = 4
image_size = 16
[encoder]
layers = [3]
pool = 1
[train]
local_steps = 4
batch_size = 20
[round]
deadline_seconds = 3600.0
[output]
sample_every = 1
"""
SAID = re.compile(r"round (\d+)(?: is open for \d+ clients, |: )state ([0-9a-f]{12})")


class Compose:
    """One project of containers, networks and volumes."""

    def __init__(self, command: list[str], name: str, **environment: str) -> None:
        self._command = command
        self.project = f"prism-test-{os.getpid()}-{name}"
        self._environment = os.environ | {"COMPOSE_PROJECT_NAME": self.project} | environment
        self._closed = 0

    def __call__(self, *words: str, seconds: float = 300) -> str:
        return said(*self._command, *words, seconds=seconds, environment=self._environment)

    def binary(self, *words: str, given: bytes = b"") -> bytes:
        """What a command writes, which is not text, when it reads what is given."""
        done = subprocess.run(
            [*self._command, *words],
            env=self._environment,
            input=given,
            capture_output=True,
            timeout=120,
        )
        if done.returncode:
            raise FailedError(f"{' '.join(words)}:\n{done.stderr.decode()}")
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, running or not."""
        labels = {"project": self.project, "service": service}
        filters = (f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items())
        return said("docker", "ps", "--all", "--quiet", "--no-trunc", *filters).split()

    def server(self) -> str:
        """The id of the server's container."""
        (server,) = self.containers("server")
        return server

    def rounds(self) -> int:
        """How many rounds the server has closed, by its own word; 0 if it cannot be asked."""
        try:
            return self("exec", "-T", "server", "cat", RUN + "/metrics.jsonl").count("\n")
        except FailedError:
            # It is being started, or has closed none yet.
            return 0

    def await_round(self) -> None:
        """Wait until more rounds are closed than when this was last waited for."""
        until(lambda: self.rounds() > self._closed, f"round {self._closed}")
        self._closed = self.rounds()
        assert self._closed < ROUNDS, "it was over before all was tried"


class FailedError(AssertionError):
    """A command failed, and what it said."""


def said(*words: str, seconds: float = 300, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise FailedError(f"{' '.join(words)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again: no engine tells when something inside a container has happened."""
    deadline = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.5)


def engine() -> list[str]:
    """The command that compose is called by; skips the tests if there is no engine."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    if subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode:
        pytest.skip("no Docker engine answers: start one, and be in its group")
    if not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    if shutil.which("docker-compose") is None:
        pytest.skip("docker has no compose, and docker-compose is not installed")
    return ["docker-compose"]


@contextmanager
def federation(folder: Path, name: str, rounds: int, **environment: str) -> Iterator[Compose]:
    """An image that is built, and a project that is gone in the end with all that it has."""
    folder.chmod(0o755)
    (folder / "tiny.toml").write_text(f"rounds = {rounds}\n{CONFIG}")
    run = {"CONFIGS": str(folder), "CONFIG": "configs/tiny.toml", "RUN": "tiny"}
    compose = Compose(engine(), name, PUBLISH="127.0.0.1:0", **run, **environment)
    compose("build", seconds=1800)
    try:
        yield compose
    finally:
        sys.stdout.write(compose("logs", "--no-color", "--tail=30"))
        compose("down", "--volumes", "--timeout=5")


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    folder = tmp_path_factory.mktemp("configs")
    with federation(folder, "here", ROUNDS, CLIENTS=str(CLIENTS)) as compose:
        yield compose


def inspect(container: str, what: str) -> str:
    return said("docker", "inspect", "--format", "{{" + what + "}}", container).strip()


def test_a_federation_goes_on_whatever_is_killed(compose: Compose, tmp_path: Path) -> None:
    compose("up", "--detach")
    server = compose.server()
    until(lambda: inspect(server, ".State.Health.Status") == "healthy", "a healthy server")
    compose.await_round()

    # The server is killed outright; nobody starts it again but the engine.
    compose("exec", "-T", "server", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
    until(lambda: inspect(server, ".RestartCount") == "1", "a restart")
    compose.await_round()

    # A client's container is destroyed, and another one takes its place.
    gone, *others = compose.containers("client")
    (name,) = set(re.findall(r"joined as (\S+)", log_of(gone)))
    said("docker", "rm", "--force", gone)
    compose("up", "--detach")
    (new,) = set(compose.containers("client")) - {*others}
    assert new != gone
    # Rounds go on without it, so that one is closed does not say that it is back.
    until(lambda: "took up the training state" in log_of(new), "the client in its new container")
    assert set(re.findall(r"joined as (\S+)", log_of(new))) == {name}
    compose.await_round()
    check_states(compose)

    compose.await_round()
    compose("down")
    compose("up", "--detach")
    finishing = [*compose.containers("client"), compose.server()]
    assert len(finishing) == CLIENTS + 1
    codes = said("docker", "wait", *finishing, seconds=600).split()
    assert codes == ["0"] * len(finishing)
    check_states(compose)
    assert "round 0 is open" not in log_of(compose.server())

    said("docker", "cp", f"{finishing[-1]}:{RUN}", str(tmp_path))
    run = tmp_path / "tiny"
    assert [line["round"] for line in jsonl(run / "metrics.jsonl")] == list(range(ROUNDS))
    updates = [line for line in jsonl(run / "comm.jsonl") if "acknowledged" in line]
    assert {line["client"] for line in updates} == {f"client-{i + 1}" for i in range(CLIENTS)}
    model = load_model(run / "model.prism")
    assert model.round == ROUNDS
    assert model.sample(4).float().std() > 1
    with Image.open(run / "samples.png") as picture:
        assert picture.convert("L").getextrema()[0] < picture.convert("L").getextrema()[1]


def log_of(container: str) -> str:
    done = subprocess.run(
        ["docker", "logs", container],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def check_states(compose: Compose) -> None:
    """Server and clients say the same digest of each round's state."""
    opened = dict(SAID.findall(log_of(compose.server())))
    for client in compose.containers("client"):
        trained = dict(SAID.findall(log_of(client)))
        # A server that goes on with a round does not open it again, and clients forget what was.
        both = trained.keys() & opened.keys()
        assert both
        assert [trained[t] for t in both] == [opened[t] for t in both]


def test_who_has_which_keys_and_rights(compose: Compose) -> None:
    """What the containers of the federation above could read and do."""
    compose("up", "--detach", "--no-recreate")
    for service, without in (
        ("server", ("/authority", "/places")),
        ("client", ("/authority", "/tls")),
    ):
        container = compose.containers(service)[0]
        assert inspect(container, ".Config.User") == "prism"
        assert inspect(container, ".HostConfig.Memory") == str(2 * 1024**3)
        mounts = inspect(container, "range .Mounts}}{{.Destination}}:{{.RW}} {{end").split()
        assert not [mount for mount in mounts if mount.split(":")[0] in without]
        assert all(f"{folder}:true" not in mounts for folder in ("/data", "/tls"))


def test_a_client_on_another_machine(tmp_path: Path) -> None:
    """As docs/operations.md has it; only that a network of the engine is what leads there."""
    with federation(tmp_path, "there", 2, CLIENTS="2") as compose:
        compose("up", "--detach", "--scale", "client=1")
        once = ("run", "--rm", "--no-deps")
        compose(*once, "certificates", "certs", "client", "hospital-a", "--dir", "/authority")
        names = ("ca.pem", "hospital-a.pem", "hospital-a.key")
        packed = ("-T", "--entrypoint", "tar", "certificates", "-C", "/authority", "-c", *names)
        content = compose.binary(*once, *packed)

        (tmp_path / "network.yml").write_text(
            f"networks:\n  default:\n    external: true\n    name: {compose.project}_default\n"
        )
        files = ("-f", "docker-compose.client.yml", "-f", str(tmp_path / "network.yml"))
        command = [*engine(), *files]
        away = Compose(command, "away", SERVER="server:7070", DATA="digits", THREADS="1")
        try:
            unpack = "tar -C /places --one-top-level=hospital-a -x"
            away.binary("run", "--rm", "-T", "--entrypoint", unpack, "client", given=content)
            away("up", "--detach")
            finishing = [*away.containers("client"), *compose.containers("client")]
            codes = said("docker", "wait", *finishing, compose.server(), seconds=300).split()
            assert codes == ["0", "0", "0"]
            assert "joined as hospital-a" in log_of(finishing[0])
        finally:
            sys.stdout.write(away("logs", "--no-color"))
            away("down", "--volumes", "--timeout=5")
