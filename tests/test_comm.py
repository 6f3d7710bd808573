"""The ledger of a run: its arithmetic on a made-up one, and its truth on a real one."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import running

from benchmarks.capture import capture
from benchmarks.comm import captured
from client.local_data import PrivateData
from client.loop import Client
from client.privacy_guard import Guard
from client.store import ClientStore
from client.transport import Security, Transport
from common.address import Address
from common.config import parse_config
from common.errors import ConfigError, DataError, PrismError, StorageError
from common.model.architecture import Architecture
from prism.comm.report import apart, notes, report
from prism.comm.traffic import DIRECTIONS, FRAMING, Ledger

TIMEOUT = 120
CONFIG = """
name = "tiny"
rounds = 3
[data]
name = "folder"
clients = 2
[model]
image_size = 16
channels = 1
[train]
local_steps = 1
batch_size = 4
[codec]
up = "raw"
down = "keyframe"
[output]
sample_every = 0
"""
D = Architecture.of(parse_config(CONFIG)).dimension


def traffic(client: str, rpc: str, direction: str, payload: int, message: int, **more: Any) -> Any:
    line = {"round": 0, "client": client, "direction": direction, "rpc": rpc, "calls": 1}
    return {**line, "payload_bytes": payload, "message_bytes": message, **more}


def counts(relay: str, up: int, down: int, **more: Any) -> Any:
    line = {"relay": relay, "time": 0.0, "event": "total", "connections": 1, "tls": False}
    received = {"up_received": up, "down_received": down}
    return {**line, **received, "up_delivered": up, "down_delivered": down, **more}


def write_lines(path: Path, *lines: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two clients, two rounds; the first client had two relays, one after the other."""
    out = tmp_path / "out"
    write_lines(
        out / "comm.jsonl",
        traffic("ann", "SubmitUpdate", "up", 100_000, 100_100, cross_entropy_bits=0.75),
        traffic("ann", "SubmitUpdate", "up", 100_000, 100_100, round=1, cross_entropy_bits=0.25),
        traffic("ann", "SubmitUpdate", "down", 0, 4, calls=2),
        traffic("ann", "FetchState", "down", 400_000, 400_200, round=1),
        traffic("bob", "SubmitUpdate", "up", 50_000, 50_050),
        # The same update again, and one that was refused by its header: no more client-rounds.
        traffic("bob", "SubmitUpdate", "up", 50_000, 50_050),
        traffic("bob", "SubmitUpdate", "up", 0, 100, round=1),
        traffic("bob", "AwaitRound", "down", 0, 500, calls=10),
    )
    write_lines(out / "relay" / "ann.jsonl", counts("a", 10, 5), counts("a", 150_000, 1_000))
    with (out / "relay" / "ann.jsonl").open("a") as file:
        file.write(json.dumps(counts("b", 60_000, 400_000, down_delivered=399_000)) + "\n")
        file.write('{"relay": "b", "up_recei')  # a relay that is just writing, or was killed
    write_lines(
        out / "metrics.jsonl",
        {"round": 0, "entropy_bits": 0.5, "kl_bits": None, "cross_entropy_bits": 0.9},
        {"round": 1, "entropy_bits": 0.7, "kl_bits": 0.02, "cross_entropy_bits": 0.9},
    )
    (out / "config.toml").write_text(CONFIG)
    return out


def test_sums(run: Path) -> None:
    ledger = Ledger.read(run)
    assert (ledger.name, ledger.dimension) == ("tiny", D)
    up, down = (ledger.tally(direction) for direction in DIRECTIONS)
    assert (up.payload_bytes, up.message_bytes, up.calls) == (300_000, 300_400, 5)
    assert (down.payload_bytes, down.message_bytes, down.calls) == (400_000, 400_704, 13)
    assert ledger.rounds_of() == 3
    assert ledger.theory == {
        "entropy_bits": pytest.approx(0.6),
        "cross_entropy_bits": 0.5,
        "kl_bits": 0.02,
    }
    (ann,) = ledger.sockets.values()
    assert (ann.up, ann.down, ann.connections, ann.lost) == (210_000, 401_000, 2, 1_000)

    # Two updates: header, two chunks, end; and a state: header, seven chunks.
    assert ledger.tally("up", ["ann"]).messages == 2 * 4
    assert ledger.tally("down", ["ann"]).messages == 2 + 1 + 7
    around = 2 * FRAMING["up"].connection + 2 * FRAMING["up"].call + 8 * FRAMING["up"].message
    assert ledger.framed("up", ["ann"]) == 200_200 + around


def test_a_part_of_a_run(run: Path) -> None:
    ledger = Ledger.read(run, since=1)
    assert ledger.client_rounds == {(1, "ann")}
    assert ledger.theory == {"entropy_bits": 0.7, "cross_entropy_bits": 0.25, "kl_bits": 0.02}
    assert ledger.tally("down").payload_bytes == 400_000
    calls = FRAMING["up"].call + 4 * FRAMING["up"].message
    assert ledger.framed("up", ["ann"]) == 100_100 + calls, "its connection is older"
    assert report(ledger)["socket"] is None


def test_report(run: Path) -> None:
    ledger = Ledger.read(run)
    found = report(ledger)
    assert found["client_rounds"] == 3
    assert found["payload"]["up_bits_per_parameter"] == pytest.approx(8 * 300_000 / 3 / D)
    assert found["message"]["bytes"] == 300_400 + 400_704
    assert found["fedavg"]["up_bits_per_parameter"] == 32
    assert found["fedavg"]["bytes_per_client_round"] == 8 * D
    assert found["paper_bytes"] == 5_750_000
    # One of the two clients has a relay, so it alone is compared.
    assert found["socket"]["clients"] == ["ann"]
    assert found["socket"]["bytes_per_client_round"] == 611_000 / 2
    over = apart(ledger)
    assert over["socket_over_payload"] == pytest.approx(100 * (611 / 600 - 1))
    assert over["message_over_payload"] == pytest.approx(100 * (600_404 / 600_000 - 1))
    assert {row["rpc"] for row in found["rpc"]} == {"SubmitUpdate", "FetchState", "AwaitRound"}
    assert sum(row["message_bytes"] for row in found["rpc"]) == 300_400 + 400_704


def prism(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prism", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_tables(run: Path) -> None:
    done = prism("comm", run)
    assert done.returncode == 0, done.stderr
    for text in (
        f"{D:,} parameters, 3 client-rounds",
        "divergence KL(client || state)",
        "codec payload",
        "socket (measured, 1 of 2 clients)",
        "FedAvg, FP32, same d",
        "5.75 MB",
        "socket over payload +1.83 %",
        "1000 bytes were still on their way when a connection ended",
    ):
        assert text in done.stdout


def test_a_run_that_has_just_begun(run: Path) -> None:
    (run / "comm.jsonl").write_text("")
    (run / "metrics.jsonl").unlink()
    write_lines(run / "relay" / "ann.jsonl", counts("a", 0, 0))
    found = report(Ledger.read(run))
    assert found["client_rounds"] == 0
    assert found["payload"]["up_bits_per_parameter"] is None
    assert found["socket"] is None
    done = prism("comm", run)
    assert done.returncode == 0, done.stderr
    assert "no relay stood before a client" in done.stdout


def test_what_cannot_be_read(run: Path, tmp_path: Path) -> None:
    def refuses(path: Path, kind: type[PrismError], says: str) -> None:
        with pytest.raises(kind, match=says):
            Ledger.read(path)

    refuses(tmp_path / "none", ConfigError, "is no directory")
    refuses(tmp_path, ConfigError, r"no comm\.jsonl")
    write_lines(run / "relay" / "carl.jsonl", {"relay": "c"})
    refuses(run, StorageError, r"carl\.jsonl, line 1")
    (run / "comm.jsonl").write_text("[]\n")
    refuses(run, StorageError, r"comm\.jsonl, line 1")
    (run / "config.toml").unlink()
    refuses(run, ConfigError, r"cannot read config .*config\.toml")


FOREIGN = {
    "nested": "[" * 100_000,
    "infinite": json.dumps(traffic("a", "Join", "up", 0, 1)).replace("1}", "1e999}"),
    "huge": json.dumps(traffic("a", "Join", "up", 0, 10**400)),
    "negative": json.dumps(traffic("a", "Join", "up", -1, 1)),
    "truth": json.dumps(traffic("a", "Join", "up", 0, True)),
    "text": json.dumps(traffic("a", "Join", "up", 0, 1, kl_bits="abc")),
    "object": json.dumps(traffic("a", "Join", "up", 0, 1, kl_bits={})),
    "nan": json.dumps(traffic("a", "Join", "up", 0, 1, kl_bits=float("nan"))),
    "rpc": json.dumps(traffic("a", 5, "up", 0, 1)),  # type: ignore[arg-type]
    "direction": json.dumps(traffic("a", "Join", "sideways", 0, 1)),
    "carriage return": json.dumps(traffic("a", "Join", "up", 0, 1)) + "\rjunk",
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN.keys())
def test_lines_that_nobody_wrote(run: Path, line: str) -> None:
    path = run / "comm.jsonl"
    good = json.dumps(traffic("ann", "Join", "up", 0, 1))
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(StorageError, match=r"comm\.jsonl, line 2: not what") as raised:
        Ledger.read(run)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["comm.jsonl", "metrics.jsonl", "relay/ann.jsonl"])
def test_a_folder_is_no_file(run: Path, name: str) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(StorageError, match=f"cannot read .*{name}: Is a directory"):
        Ledger.read(run)


def test_a_relay_that_missed_a_part(run: Path) -> None:
    write_lines(run / "relay" / "bob.jsonl", counts("c", 100_199, 10_000))
    ledger = Ledger.read(run)
    assert set(ledger.sockets) == {"ann"}
    assert report(ledger)["socket"]["clients"] == ["ann"]
    assert apart(ledger) == report(ledger)["apart_percent"]
    (said,) = (note for note in notes(ledger) if "bob" in note)
    assert "missed a part of the run" in said
    assert said in report(ledger)["notes"]
    assert "bob, whose relays counted less" in prism("comm", run).stdout

    (run / "relay" / "ann.jsonl").unlink()
    found = report(Ledger.read(run))
    assert found["socket"] is None
    assert not [key for key in found["apart_percent"] if key.startswith("socket")]
    assert not [note for note in found["notes"] if "no relay stood" in note]

    write_lines(run / "relay" / "bob.jsonl", counts("c", 100_200, 10_000))
    assert set(Ledger.read(run).sockets) == {"bob"}


def test_tls_in_a_part_alone(run: Path) -> None:
    path = run / "relay" / "ann.jsonl"
    write_lines(path, counts("a", 150_000, 1_000), counts("b", 60_000, 400_000, tls=True))
    assert "TLS in a part of the run alone, in all of the model: ann" in notes(Ledger.read(run))


def test_a_relay_before_nobody_yet(run: Path) -> None:
    write_lines(run / "relay" / "carl.jsonl", counts("c", 1, 1))
    ledger = Ledger.read(run)
    assert set(ledger.sockets) == {"ann"}
    assert "carl.jsonl, since comm.jsonl has no such client yet" in notes(ledger)[-1]


def test_the_seam_of_two_relays(run: Path) -> None:
    path = run / "relay" / "ann.jsonl"
    before = Ledger.read(run).sockets["ann"]
    # The torn line of b stands there already; its successor appends to it.
    with path.open("a") as file:
        for count in (1, 5):
            file.write(json.dumps(counts("c", count, count)) + "\n")
    after = Ledger.read(run).sockets["ann"]
    assert (after.up, after.down) == (before.up + 5, before.down + 5)


def test_names_are_no_markup(run: Path) -> None:
    (run / "config.toml").write_text(CONFIG.replace('"tiny"', '"[/b]tiny"'))
    write_lines(run / "relay" / "[bold].jsonl", counts("c", 1, 1))
    with (run / "comm.jsonl").open("a") as file:
        file.write(json.dumps(traffic("ann", "[/b]", "up", 0, 1)) + "\n")
    done = prism("comm", run)
    assert done.returncode == 0, done.stderr
    assert "[/b]tiny: " in done.stdout
    assert "[bold].jsonl" in done.stdout


def test_states_that_cannot_be_measured(tmp_path: Path) -> None:
    def refuses(says: str) -> None:
        with pytest.raises(DataError, match=says) as raised:
            captured(path)
        assert "\n" not in str(raised.value)

    path = tmp_path / "a.npz"
    np.savez(path, scores=np.zeros(5, np.int16), client_scores=np.zeros((2, 5), np.int16))
    assert captured(path).count == 2
    path.write_bytes(path.read_bytes()[:-30])
    refuses("cannot read states from")
    path.write_bytes(b"")
    refuses("cannot read states from")
    with path.open("wb") as file:
        np.save(file, np.zeros(5, np.int16))
    refuses("one array")
    for d, k in ((0, 2), (5, 0)):
        np.savez(path, scores=np.zeros(d, np.int16), client_scores=np.zeros((k, d), np.int16))
        refuses("above 0")


def test_states_go_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    with pytest.raises(SystemExit, match="File exists; name a folder"):
        capture(tmp_path / "c.toml", "0", tmp_path / "c.toml")


def check_ledger(out: Path, *, tls: bool) -> None:
    """What the server saw, framed, is what the sockets carried; the relays lost nothing."""
    ledger = Ledger.read(out)
    assert set(ledger.sockets) == {client for _, client in ledger.client_rounds}
    received = {"up": 0, "down": 0}
    for path in (out / "relay").glob("*.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        assert last["event"] == "end"
        for direction in DIRECTIONS:
            # A ping may cross a goodbye; whoever has hung up does not get it.
            assert 0 <= last[f"{direction}_received"] - last[f"{direction}_delivered"] <= 64
            received[direction] += last[f"{direction}_received"]
    figures = report(ledger)
    for direction in DIRECTIONS:
        socket = sum(getattr(link, direction) for link in ledger.sockets.values())
        assert socket == received[direction] == figures["socket"][f"{direction}_bytes"]
        assert socket > ledger.tally(direction).message_bytes
        assert ledger.framed(direction) == pytest.approx(socket, rel=0.02)
    assert all(link.tls == tls for link in ledger.sockets.values())
    assert abs(figures["apart_percent"]["socket_over_framed"]) < 2


def images(folder: Path) -> str:
    """What --data takes; few images, since nothing here is about them."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 16), dtype=np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{number}.png")
    return f"folder:{folder}"


@pytest.mark.parametrize("tls", [False, True])
def test_a_real_run(tmp_path: Path, tls: bool) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    out, data = tmp_path / "out", images(tmp_path / "images")
    words = ("run", tmp_path / "c.toml", "--out", out, "--data", data)
    done = prism(*words, "--relay", "--rate", "1gbit", *(["--tls"] if tls else []))
    assert done.returncode == 0, done.stderr + done.stdout
    check_ledger(out, tls=tls)
    assert not tls or (out / "tls" / "certificate.key").stat().st_mode & 0o077 == 0
    assert not list(out.glob("relay/*.address"))
    assert report(Ledger.read(out))["payload"]["up_bits_per_parameter"] == pytest.approx(1, 0.001)


@pytest.mark.parametrize("up", ["entropy", "flips"])
def test_theory_beside_what_codecs_made(tmp_path: Path, up: str) -> None:
    config = parse_config(CONFIG, [f"codec.up={up}"])
    data, out = images(tmp_path / "images"), tmp_path / "out"

    def train(address: str, name: str) -> None:
        transport = Transport(Address.parse(address), Security())
        private = PrivateData(data, None, None, torch.device("cpu"), None)
        Client(transport, private, ClientStore(None, name), Guard(None), TIMEOUT).run()
        transport.close()

    async def main() -> None:
        async with running(config, out, to_the_end=True) as address:
            await asyncio.gather(*(asyncio.to_thread(train, address, n) for n in ("ann", "bob")))

    asyncio.run(main())
    done = prism("comm", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    theory, sent = found["theory_bits_per_parameter"], found["payload"]["up_bits_per_parameter"]
    assert found["client_rounds"] == 6
    assert 0 < theory["kl_bits"] < theory["entropy_bits"] < 1
    if up == "entropy":
        assert sent == pytest.approx(theory["cross_entropy_bits"], rel=0.02)
    else:
        assert theory["kl_bits"] < sent < theory["cross_entropy_bits"] / 2
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name in ("kl_bits", "cross_entropy_bits"):
        assert sum(line[name] for line in rounds) / 3 == pytest.approx(theory[name])


def test_shaping_needs_relays(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    words = ("run", tmp_path / "c.toml", "--out", tmp_path / "out", "--data", "digits")
    done = prism(*words, "--rate", "1mbit")
    assert done.returncode == 1
    assert done.stderr.strip() == "prism run: --rate shapes the relays: give --relay too"
