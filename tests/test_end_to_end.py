"""Whole runs over real processes and real sockets, as people start them."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from select import select
from typing import Any

import pytest
import torch
from support import background, jsonl

from benchmarks.simulate import client_moments, simulate
from common.config import load_config
from common.data import open_source
from common.encoders import load_encoder
from common.errors import PrismError
from common.model.architecture import Architecture
from common.model.export import build_model, load_model
from common.pem import SERVER, read_pair
from prism.run.certificate import make_certificate
from prism.run.processes import processes

TIMEOUT = 120
TINY = """
name = "tiny"
rounds = 3
[data]
name = "digits"
clients = 2
[model]
image_size = 16
[train]
local_steps = 2
batch_size = 8
[mada]
enabled = true
[codec]
up = "raw"
down = "keyframe"
[output]
sample_every = 2
"""


def prism(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prism", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **options,
    )


def started(log: Path, *words: str | Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A background process that does not outlive the block."""
    return background(log, "-m", "prism", *words)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def final_digest(out: Path) -> tuple[bytes, bytes]:
    model = load_model(out / "model.prism")
    return model.parameters.tobytes(), model.sample(4).numpy().tobytes()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished `prism run`."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(TINY)
    # A proxy that is nowhere: loopback must not go through it.
    proxied = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    words = ("run", folder / "tiny.toml", "--out", folder / "out", "--threads", 1)
    done = prism(*words, env=proxied)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "round 2" in done.stdout
    return folder


def test_a_run_leaves_what_it_promises(tiny_run: Path) -> None:
    out = tiny_run / "out"
    config = load_config(out / "config.toml")
    d = Architecture.of(config).dimension

    metrics = jsonl(out / "metrics.jsonl")
    assert [line["round"] for line in metrics] == [0, 1, 2]
    for line in metrics:
        assert 0 < line["lambda"] < 1
        assert 0 < line["density"] < 1
        assert 0 < line["entropy_bits"] < 1
        assert line["clients"] == 2
        assert line["seconds"] > 0

    traffic = jsonl(out / "comm.jsonl")
    updates = [
        line for line in traffic if line["rpc"] == "SubmitUpdate" and line["direction"] == "up"
    ]
    assert len(updates) == 6
    for line in updates:
        assert line["payload_bytes"] == -(-d // 8)
        assert line["payload_bytes"] < line["message_bytes"] < 1.01 * line["payload_bytes"]
    states = [
        line for line in traffic if line["rpc"] == "FetchState" and line["direction"] == "down"
    ]
    # State 0 is built from the seed; nobody sends it.
    assert sum(line["payload_bytes"] for line in states if line["round"] == 0) == 0
    assert sum(line["payload_bytes"] for line in states) == 2 * 2 * 2 * d

    model = out / "model.prism"
    assert model.stat().st_size <= d / 8 + 16 * 1024
    assert (out / "samples.png").stat().st_size > 1000
    assert list(out.glob("**/events.out.tfevents.*"))


def test_sampling_needs_the_model_alone(tiny_run: Path, tmp_path: Path) -> None:
    model = tiny_run / "out" / "model.prism"
    for name in ("grid.png", "samples.npz"):
        done = prism("sample", model, "-n", 9, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).stat().st_size > 0


def test_a_finished_run_says_so(tiny_run: Path) -> None:
    done = prism("run", tiny_run / "tiny.toml", "--out", tiny_run / "out")
    assert done.returncode == 0, done.stderr
    other = prism("run", tiny_run / "tiny.toml", "--out", tiny_run / "out", "--set", "seed=2")
    assert other.returncode == 1
    assert "another run" in other.stderr


def serve(config: Path, out: Path, port: int) -> tuple[str | Path, ...]:
    return ("server", config, "--bind", f"127.0.0.1:{port}", "--out", out)


def join(port: int, folder: Path, index: int) -> tuple[str | Path, ...]:
    return (
        *("client", "--server", f"127.0.0.1:{port}", "--data", "digits", "--threads", "1"),
        *("--name", f"client-{index}", "--partition", f"{index}/2"),
        *("--state", folder / f"state-{index}"),
    )


@pytest.mark.usefixtures("one_thread")
def test_the_simulator_ends_with_the_same_model(tiny_run: Path) -> None:
    """For one config and real processes; `test_simulator.py` has the others."""
    config = load_config(tiny_run / "out" / "config.toml")
    encoder, cpu = load_encoder(config.encoder.name), torch.device("cpu")
    moments = client_moments(config, open_source("digits"), encoder, cpu)
    *_, last = simulate(config, encoder, moments, cpu)
    parameters = load_model(tiny_run / "out" / "model.prism").parameters
    assert build_model(config, last.source.state).parameters.tobytes() == parameters.tobytes()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_restarted_it_ends_the_same(
    tiny_run: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """Clients start before the server; then the server and a client die and come back."""
    config, out, port = tiny_run / "tiny.toml", tmp_path / "out", free_port()
    metrics = out / "metrics.jsonl"
    with (
        started(tmp_path / "c0", *join(port, tmp_path, 0)) as first,
        started(tmp_path / "c1", *join(port, tmp_path, 1)) as second,
    ):
        with started(tmp_path / "s", *serve(config, out, port)) as server:
            wait_for_line(metrics, server)
            server.send_signal(how)
            server.wait(TIMEOUT)
            second.kill()
        with (
            started(tmp_path / "s", *serve(config, out, port)) as server,
            started(tmp_path / "c1", *join(port, tmp_path, 1)) as again,
        ):
            for process in (first, again, server):
                assert process.wait(TIMEOUT) == 0, (tmp_path / "s").read_text()
    assert final_digest(out) == final_digest(tiny_run / "out")
    assert [line["round"] for line in jsonl(metrics)] == [0, 1, 2]


def wait_for_line(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a file has a line; the process that writes it must be alive meanwhile."""
    while not path.exists() or not path.read_bytes():
        assert process.poll() is None
        os.sched_yield()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_leave_no_process(
    tiny_run: Path, tmp_path: Path, how: signal.Signals
) -> None:
    log = tmp_path / "log"
    words = ("run", tiny_run / "tiny.toml", "--out", tmp_path / "out", "--set", "rounds=1000")
    with started(log, *words) as process:
        wait_for_line(tmp_path / "out" / "metrics.jsonl", process)
        process.send_signal(how)
        assert process.wait(TIMEOUT) == 130
    assert not processes_of(tmp_path / "out")
    last = f"stopped; to go on: {sys.executable} -m prism {' '.join(map(str, words))}"
    assert log.read_text().splitlines()[-1] == last


def processes_of(out: Path) -> list[int]:
    """Processes that name a run's directory on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(out).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def test_killed_outright_it_takes_its_processes_along(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("run", tiny_run / "tiny.toml", "--out", out, "--set", "rounds=1000", "--relay")
    with started(tmp_path / "log", *words) as process:
        wait_for_line(out / "metrics.jsonl", process)
        members = [os.pidfd_open(pid) for pid in processes_of(out) if pid != process.pid]
        process.kill()
        assert len(members) == 1 + 2 + 2, "a server, two clients and their relays"
        for member in members:
            # Readable once the process has ended.
            assert select([member], [], [], TIMEOUT)[0]
            os.close(member)
    assert not processes_of(out)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_in_use_is_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server = serve(tiny_run / "tiny.toml", out, 0)
    with started(tmp_path / "s", *server) as process:
        wait_for_line(out / "address", process)
        # The server itself may write more while it lives; these it writes once.
        once = [out / "address", out / "config.toml"]
        before = [file.read_bytes() for file in once]
        done = prism("run", tiny_run / "tiny.toml", "--out", out, "--tls")
        assert [file.read_bytes() for file in once] == before
        assert not (out / "tls").exists()
        assert [file.name for file in (out / "logs").iterdir()] == ["server.log"]
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"prism run: a server is using {out}: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_run_keeps_its_certificate(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pair = make_certificate(out / "tls")
    (out / "config.toml").write_bytes((tiny_run / "out" / "config.toml").read_bytes())
    before = contents(out)
    words = ("run", tiny_run / "tiny.toml", "--out", out, "--tls")
    done = prism(*words, "--set", "seed=9")
    assert "another run" in done.stderr
    assert contents(out) == before

    assert make_certificate(out / "tls") == pair
    assert contents(out) == before, "clients may trust it"
    pair[0].write_text("no certificate")
    assert make_certificate(out / "tls") == pair
    assert read_pair(*pair, SERVER)


def test_a_killed_server_is_named_with_its_signal(tiny_run: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    (out / "logs").mkdir(parents=True)
    (out / "logs" / "server.log").write_text("of a previous process\n")
    words = ("run", tiny_run / "tiny.toml", "--out", out, "--set", "rounds=1000")
    with started(log, *words) as process:
        wait_for_line(out / "metrics.jsonl", process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (server,) = (
            pid for pid in children if b"\0server\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(int(server), signal.SIGKILL)
        assert process.wait(TIMEOUT) == 1
    assert "prism run: server was killed by SIGKILL" in log.read_text()


def test_what_failed_before_is_not_said_again(tmp_path: Path) -> None:
    (tmp_path / "it.log").write_text("of a previous process\n")
    with processes(tmp_path) as start:
        member = start("it", ["site_that_is_not"])
        member.process.wait(TIMEOUT)
    with pytest.raises(PrismError, match=r"it stopped: .*No module named"):
        member.raise_if_failed()
    (tmp_path / "it.log").write_text("of a previous process\n")
    with pytest.raises(PrismError, match="it stopped: exit code 1"):
        member.raise_if_failed()


def test_names_are_no_markup(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "[/b]out"
    words = ("run", tiny_run / "tiny.toml", "--out", out, "--set", "rounds=1")
    done = prism(*words, "--set", 'name="[/b]x"')
    assert done.returncode == 0, done.stderr
    assert f"model: {out}/model.prism" in done.stdout


def test_one_clear_line_for_every_mistake(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(TINY)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    (tmp_path / "model").write_bytes(b"no model")
    nobody, unused = f"127.0.0.1:{free_port()}", tmp_path / "unused"
    mistakes: list[tuple[tuple[str | Path, ...], str]] = [
        (("run", config, "--set", "colour=3"), "colour: unknown key"),
        (("run", config, "--set", "rounds=many"), "rounds:"),
        (("run", config, "--set", 'data.name=["a"]'), "data.name:"),
        (("run", config, "--set", "round.min_clients=9"), "round.start_clients is 9"),
        (
            ("run", config, "--set", "data.clients=5000", "--out", unused),
            "1498 images cannot be split among 5000 clients",
        ),
        (("run", config, "--data", "folder:/none", "--out", unused), "/none"),
        (("run", config, "--out", config), "cannot use"),
        (("run", tmp_path / "none.toml"), "cannot read"),
        (("server", config, "--bind", "0.0.0.0:0", "--out", tmp_path / "o"), "--insecure"),
        (("server", config, "--bind", "nowhere", "--out", tmp_path / "o"), "HOST:PORT"),
        (("client", "--server", nobody, "--data", "digits", "--patience", "0"), "nothing listens"),
        (("client", "--server", "a.example:1", "--data", "digits"), "--insecure"),
        (("client", "--server", nobody, "--data", f"folder:{tmp_path}/none"), "none"),
        (("client", "--server", nobody, "--data", f"folder:{tmp_path}/empty"), "empty"),
        (("client", "--server", nobody, "--data", f"folder:{'x' * 300}"), "cannot read"),
        (("client", "--server", nobody, "--data", "imagenet"), "imagenet"),
        (("client", "--server", nobody, "--data", "digits", "--partition", "3/3"), "i/N"),
        (("client", "--server", nobody, "--data", "digits", "--device", "tpu"), "auto, cpu"),
        (("sample", tmp_path / "model"), "not a model file"),
        (("sample", tmp_path / "none"), "no model at"),
        (("sample", tmp_path / "model", "--out", "a.bmp"), ".png or .npz"),
    ]
    with ThreadPoolExecutor(4) as pool:
        finished = list(pool.map(lambda mistake: prism(*mistake[0]), mistakes))
    for (words, says), done in zip(mistakes, finished, strict=True):
        assert done.returncode != 0, words
        assert says in done.stderr, (words, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, (words, done.stderr)
    assert not unused.exists(), "refused before anything was started"


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    (tmp_path / "c.toml").write_text(TINY.replace('"digits"', '"folder"').replace("= 2", "= 1", 1))
    words = ("run", tmp_path / "c.toml", "--out", tmp_path / "out", "--set", "data.clients=1")
    done = prism(*words, "--data", f"folder:{tmp_path}/images")
    assert done.returncode == 1
    assert "a.png" in done.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_run_on_cuda(tiny_run: Path, tmp_path: Path) -> None:
    words = ("run", tiny_run / "tiny.toml", "--out", tmp_path / "out", "--device", "cuda")
    assert prism(*words).returncode == 0
