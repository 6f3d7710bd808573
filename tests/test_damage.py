"""What a person can do to the files of a run, or of a client: each ends in one line."""

from __future__ import annotations

import asyncio
import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support import NAMES, clients, federation, tiny_config, whole_run
from support_client import CONFIG, ScriptedServer, take_part

import client.__main__
import server.__main__
from common.errors import PrismError, StorageError
from common.files import sealed, unsealed
from common.logs import Log, LogFormat
from server.app import serve
from server.engine import Engine
from server.frame_log import FrameLog
from server.journal import Journal

CONFIG_SERVER = tiny_config(rounds=2, output={"sample_every": 1})


def run_server(out: Path) -> str:
    """What `prism server` ends with: its one line, or nothing."""
    config = out.parent / "given.toml"
    config.write_text(CONFIG_SERVER.to_toml())
    try:
        server.__main__.server(config, "127.0.0.1:0", out)
    except SystemExit as end:
        return str(end)
    return ""


def loop(path: Path) -> None:
    """What cannot be read, whoever asks: a link to itself."""
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "deleted": lambda path, _: path.unlink(),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 4]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "swapped": lambda path, other: path.write_bytes(other),
    "unreadable": lambda path, _: loop(path),
    "a directory": lambda path, _: (path.unlink(), path.mkdir()),
}
REFUSED = {
    "config.toml": {"truncated", "emptied", "swapped", "a directory"},
    "server.lock": {"unreadable", "a directory"},
    "journal/checkpoint": set(DAMAGES),
    "journal/round-000002.log": set(DAMAGES),
    "metrics.jsonl": set(DAMAGES) - {"deleted"},
    "comm.jsonl": set(DAMAGES) - {"deleted"},
    "model.prism": set(),
    "samples.png": set(),
    "samples/round-000002.png": set(),
    "samples": set(),
    "tensorboard": set(),
}
"""By file, what a server does not start with. Everything else it mends, makes again or lets be."""
OF_A_CLIENT: dict[str, set[str]] = {
    "trainer.pt": {"deleted", "swapped"},
    "client.json": {"deleted", "swapped"},
    "ledger.jsonl": set(),
    # As after a crash between the first line and its head.
    "ledger.head": {"deleted", "unreadable"},
    "lock": {"deleted", "truncated", "emptied", "swapped"},
}
"""By file, what a client goes on with all the same."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and one of another seed."""
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    asyncio.run(whole_run(CONFIG_SERVER, one))
    asyncio.run(whole_run(CONFIG_SERVER.model_copy(update={"seed": 2}), other))
    return one, other


class NoHandlers(Log):
    """Says what a process ends with, and leaves the log of the tests as it is."""

    def __init__(self, *_: object, **__: object) -> None:
        self._form = LogFormat.TEXT

    def into(self, path: Path) -> None:
        pass


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What both do to a process that is all theirs."""
    for module in (client.__main__, server.__main__):
        monkeypatch.setattr(module, "Log", NoHandlers)
    monkeypatch.setattr("server.strangers.watch_grpc", lambda: None)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", REFUSED)
def test_every_file_of_a_run_however_it_is_damaged(
    runs: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    shutil.copytree(runs[0], out)
    path = out / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"")
        other = b"a file"
    else:
        other = (runs[1] / name).read_bytes()
    DAMAGES[damage](path, other)
    said = run_server(out)
    assert bool(said) == (damage in REFUSED[name]), said
    if said:
        assert said.startswith("prism server: ") and "\n" not in said
    else:
        # What can be made again was, or it was said why not.
        assert Journal(out, CONFIG_SERVER).close() is None
    for record in caplog.records:
        assert record.exc_info is None or record.exc_info[1] is None, record.getMessage()
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["trainer.pt", "client.json", "ledger.jsonl", "ledger.head", "lock"]
)
def test_every_file_of_a_client_however_it_is_damaged(
    tmp_path: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    take_part(ScriptedServer(CONFIG, [0]), state)
    take_part(ScriptedServer(CONFIG.model_copy(update={"seed": 2}), [0]), other)
    DAMAGES[damage](state / name, (other / name).read_bytes())
    scripted = ScriptedServer(CONFIG, [1])
    monkeypatch.setattr("client.transport.Transport", lambda *_: scripted)
    monkeypatch.setattr(scripted, "close", lambda: None, raising=False)
    try:
        client.__main__.client(
            "127.0.0.1:1", "digits", state=state, partition="0/50", name=None, threads=1
        )
        said = ""
    except SystemExit as end:
        said = str(end)
    assert (said == "") == (damage in OF_A_CLIENT[name]), said
    if said:
        assert said.startswith("prism client: ") and "\n" not in said


ENTRIES: dict[str, tuple[dict[str, object], bytes]] = {
    "no kind": ({}, b""),
    "another kind": ({"kind": "other"}, b""),
    "a client twice": ({"kind": "open", "draw": 0, "cohort": ["a", "a"]}, b""),
    "no cohort": ({"kind": "open", "draw": 0, "cohort": []}, b""),
    "a draw below 0": ({"kind": "open", "draw": -1, "cohort": ["a"]}, b""),
    "another number of places": ({"kind": "open", "draw": 1, "cohort": ["a"]}, b""),
    "a word for a number": ({"kind": "partition", "client": "a", "index": "0"}, b""),
    "nobody was late": ({"kind": "missed", "clients": []}, b""),
    "who was not asked was late": ({"kind": "missed", "clients": ["eve"]}, b""),
    "more than there is": ({"kind": "close", "more": 1}, b""),
    "nobody's update": (
        {"kind": "update", "client": "eve", "digest": "00" * 32, "sizes": [0], "loss": None},
        b"",
    ),
    "another digest": (
        {"kind": "update", "client": "ann", "digest": "00" * 32, "sizes": [1], "loss": 0.5},
        b"x",
    ),
    "no loss": (
        {"kind": "update", "client": "ann", "digest": "00" * 32, "sizes": [], "loss": "nan"},
        b"",
    ),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_entries_that_only_a_hand_could_write(tmp_path: Path, what: str) -> None:
    """Their checksums are right: whoever wrote them computed them."""
    config = tiny_config()

    async def main() -> None:
        async with federation(tmp_path, config) as (ann, *_):
            await ann.assignment()

    asyncio.run(main())
    log, _ = FrameLog.open(tmp_path / "journal" / "round-000000.log")
    entry, payload = ENTRIES[what]
    log.append(entry, payload)
    log.sync()
    log.close()
    with pytest.raises(StorageError, match="holds an entry unknown to this version") as raised:
        Engine(config, tmp_path)
    assert "\n" not in str(raised.value)


def checkpointed(out: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the arrays of a checkpoint, and compute its digest anew."""
    path = out / "journal" / "checkpoint"
    line, _, tensors = unsealed(path.read_bytes()).partition(b"\n")
    arrays = safetensors.numpy.load(tensors)
    change(arrays)
    path.write_bytes(sealed(line + b"\n" + safetensors.numpy.save(arrays)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: arrays.pop("state"), "not a checkpoint that this version reads"),
        (lambda arrays: arrays.pop("average"), "does not fit this run"),
        (lambda arrays: arrays.update(state=np.zeros(3, np.int16)), "does not fit this run"),
        (
            lambda arrays: arrays.update(state=arrays["state"].astype(np.float32)),
            "does not fit this run",
        ),
    ],
    ids=["no state", "no average", "a small state", "weights"],
)
def test_checkpoints_that_only_a_hand_could_write(
    runs: tuple[Path, Path],
    tmp_path: Path,
    change: Callable[[dict[str, np.ndarray]], object],
    says: str,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[0], out)
    checkpointed(out, change)
    said = run_server(out)
    assert says in said and "\n" not in said


def test_a_log_with_an_entry_that_is_nested_deeply(tmp_path: Path) -> None:
    path = tmp_path / "log"
    FrameLog.create(path, {"kind": "log"}).close()
    marker = path.read_bytes()[:8]
    from server import frame_log

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_log.json, "dumps", lambda _: "[" * 100_000)
        frame = frame_log._frame(marker, {}, b"")
    path.write_bytes(path.read_bytes() + frame)
    with pytest.raises(StorageError, match="not JSON"):
        FrameLog.open(path)


@pytest.mark.parametrize("size", [0, 150, 300, 700, 2000, 5000])
def test_a_full_disk_at_any_instant_ends_in_one_line(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """No file may grow beyond a size, as on a disk that is full; then there is room again."""
    config = tiny_config(rounds=4, alpha=0.3, output={"sample_every": 1})
    out = tmp_path / "out"

    async def main() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(config, "127.0.0.1:0", out, ready=port.set_result))
        await asyncio.wait({task, port}, return_when=asyncio.FIRST_COMPLETED)
        if port.done():
            async with clients(config, f"127.0.0.1:{port.result()}", *NAMES) as all_:
                lives = (client.take_part() for client in all_)
                await asyncio.gather(*lives, return_exceptions=True)
        await task

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(PrismError, match="File too large") as raised:
            asyncio.run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value)
    for record in caplog.records:
        assert record.exc_info is None or record.exc_info[1] is None, record.getMessage()
    expected = asyncio.run(whole_run(config, tmp_path / "undisturbed"))
    assert asyncio.run(whole_run(config, out)) == expected
