"""metrics.jsonl and comm.jsonl say what the journal says, whatever a crash or a hand took away."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import NAMES, clients, federation, jsonl, running, timeless, tiny_config, whole_run

from common.config import RunConfig
from common.errors import PrismError, StorageError
from common.rpc.prism.v1 import federation_pb2 as pb
from prism.comm.report import notes
from prism.comm.traffic import Ledger
from server.engine import Engine
from server.line_file import LineFile, Mark


def updates(out: Path) -> list[dict[str, Any]]:
    """The lines of acknowledged updates without their times, sorted."""
    lines = [line for line in jsonl(out / "comm.jsonl") if "acknowledged" in line]
    for line in lines:
        del line["time"]
    return sorted(lines, key=lambda line: (line["round"], line["client"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of three rounds closed, and two of three updates of the last in."""
    out = tmp_path_factory.mktemp("run")

    async def main() -> None:
        async with federation(out) as all_:
            for round_ in range(2):
                for client in all_:
                    await client.submit(await client.assignment())
                while (await all_[0].status()).round == round_:
                    await all_[0].await_round(1)
            for client in all_[:2]:
                await client.submit(await client.assignment())

    asyncio.run(main())
    return out


def resume(out: Path) -> None:
    """What a server does before it serves, and then its end."""

    async def main() -> None:
        await Engine(tiny_config(), out).close()

    asyncio.run(main())


def test_every_line_has_the_time_and_every_update_its_line(run: Path) -> None:
    for name in ("metrics.jsonl", "comm.jsonl"):
        times = [datetime.fromisoformat(line["time"]) for line in jsonl(run / name)]
        offsets = [time.utcoffset() for time in times]
        assert offsets and all(offset is not None and not offset for offset in offsets)
    assert [(line["round"], line["client"]) for line in updates(run)] == [
        *((round_, name) for round_ in range(2) for name in NAMES),
        *((2, name) for name in NAMES[:2]),
    ]
    sent = [line for line in jsonl(run / "comm.jsonl") if line["rpc"] == "SubmitUpdate"]
    assert sum(line["direction"] == "up" for line in sent) == len(updates(run))
    assert all(line["message_bytes"] > line["payload_bytes"] > 0 for line in updates(run))


@pytest.mark.parametrize("name", ["metrics.jsonl", "comm.jsonl"])
def test_torn_at_every_byte_behind_the_checkpoint_nothing_is_lost(
    run: Path, tmp_path: Path, name: str
) -> None:
    expected = {n: (run / n).read_bytes() for n in ("metrics.jsonl", "comm.jsonl")}
    whole = expected[name]
    header = json.loads((run / "journal" / "checkpoint").read_bytes()[32:].partition(b"\n")[0])
    marked = header["marks"][name][0]
    assert 0 < marked < len(whole)
    for length in sorted({marked, len(whole) - 1, *range(marked + 1, len(whole), 131)}):
        out = tmp_path / str(length)
        shutil.copytree(run, out)
        (out / name).write_bytes(whole[:length])
        resume(out)
        assert updates(out) == updates(run)
        assert (out / "metrics.jsonl").read_bytes() == expected["metrics.jsonl"]
        kept = whole[: whole.rfind(b"\n", 0, length) + 1]
        assert (out / name).read_bytes().startswith(kept)
        shutil.rmtree(out)


def test_updates_stay_in_when_another_client_takes_the_place_of_one(tmp_path: Path) -> None:
    config = tiny_config(rounds=1, data={"clients": 2}, round={"quorum": 1.0})

    async def main() -> None:
        async with (
            running(config, tmp_path) as address,
            clients(config, address, *NAMES) as (ann, bob, cleo),
        ):
            for client in (ann, bob):
                await client.join()
            await ann.submit(await ann.assignment())
            await bob.leave()
            await cleo.join()
            assignment = await cleo.assignment()
            assert (assignment.round, assignment.rank) == (0, 1), "the place of bob"
            assert (await ann.await_round(0)).HasField("wait")

    asyncio.run(main())
    before = updates(tmp_path)
    assert [line["client"] for line in before] == ["ann"]
    lines = (tmp_path / "comm.jsonl").read_text().splitlines(keepends=True)
    left = [line for line in lines if "acknowledged" not in line]
    (tmp_path / "comm.jsonl").write_text("".join(left))

    async def resumed() -> None:
        engine = Engine(config, tmp_path)
        assert engine._interrupted is not None
        assert engine._interrupted.cohort == ("ann", "cleo")
        await engine.close()

    asyncio.run(resumed())
    assert updates(tmp_path) == before


def test_an_update_counts_once_however_often_it_is_sent(tmp_path: Path) -> None:
    config = tiny_config(rounds=1)

    async def main() -> None:
        async with federation(tmp_path, config) as (ann, *_):
            assignment, payload = await ann.assignment(), ann.payload(0)
            report = pb.ClientReport(loss=1.0, cross_entropy_bits=0.5, kl_bits=0.25)
            header = ann.header(assignment, payload, report=report)
            assert not (await ann.send(header, payload)).duplicate
            assert (await ann.send(header, payload)).duplicate

    asyncio.run(main())
    (line,) = updates(tmp_path)
    assert (line["client"], line["kl_bits"], line["calls"]) == ("ann", 0.25, 1)
    again = [
        line
        for line in jsonl(tmp_path / "comm.jsonl")
        if (line["rpc"], line["direction"]) == ("SubmitUpdate", "up") and "acknowledged" not in line
    ]
    assert len(again) == 1 and "kl_bits" not in again[0], "its bytes travelled too"


def test_equal_runs_leave_equal_books_whoever_comes_first(tmp_path: Path) -> None:
    """Losses whose sum depends on the order, and clients that come in each order."""
    config = tiny_config(rounds=1)
    said = dict(zip(NAMES, (0.1, 0.2, 0.3), strict=True))

    async def main(out: Path, order: tuple[str, ...]) -> None:
        async with federation(out, config) as all_:
            by_name = {client.name: client for client in all_}
            for name in order:
                client = by_name[name]
                assignment, payload = await client.assignment(), client.payload(0)
                bits = {"cross_entropy_bits": said[name] + 0.4, "kl_bits": said[name]}
                report = pb.ClientReport(loss=said[name], **bits)
                await client.send(client.header(assignment, payload, report=report), payload)
            while (await all_[0].status()).phase != "finished":
                await all_[0].await_round(1)

    found = []
    for number, order in enumerate((NAMES, NAMES[::-1], (NAMES[1], NAMES[0], NAMES[2]))):
        out = tmp_path / str(number)
        asyncio.run(main(out, order))
        (line,) = timeless(jsonl(out / "metrics.jsonl"))
        found.append((json.dumps(line), updates(out)))
    assert found[0] == found[1] == found[2]


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def gone(out: Path, *names: str) -> None:
    for name in names:
        (out / name).unlink()


FURTHER: dict[str, tuple[Callable[[Path], None], str]] = {
    "no checkpoint": (lambda out: gone(out, "journal/checkpoint"), r"shows that the run was at"),
    "no log": (lambda out: gone(out, "journal/round-000002.log"), r"round-000002\.log is gone"),
    "no journal": (lambda out: shutil.rmtree(out / "journal"), r"shows that the run was at"),
    "only calls left": (
        lambda out: gone(out, "metrics.jsonl", "journal/checkpoint", "journal/round-000002.log"),
        r"comm\.jsonl shows that the run was at round 2",
    ),
    "only the log left": (
        lambda out: gone(out, "metrics.jsonl", "journal/checkpoint", "comm.jsonl"),
        r"round-000002\.log shows that the run was at round 2",
    ),
    "another line": (
        lambda out: edit(out / "metrics.jsonl", lambda lines: lines + b'{"round": 7}\n'),
        r"metrics\.jsonl shows that the run was at round 8",
    ),
    "another line with nothing": (
        lambda out: edit(out / "metrics.jsonl", lambda lines: lines + b"{}\n"),
        r"metrics\.jsonl, line 3: not what this program writes",
    ),
    "nested deeply": (
        lambda out: edit(out / "comm.jsonl", lambda lines: lines + b"[" * 99_999 + b"\n"),
        r"comm\.jsonl, line \d+: not what this program writes",
    ),
    "a changed figure": (
        lambda out: edit(out / "metrics.jsonl", lambda lines: lines.replace(b"0.5", b"0.6", 1)),
        r"metrics\.jsonl is not what the server wrote: put a copy",
    ),
    "the last figure": (
        lambda out: edit(out / "metrics.jsonl", lambda lines: b"0.6".join(lines.rsplit(b"0.5", 1))),
        r"metrics\.jsonl tells of another run, or was changed",
    ),
    "an update of nobody": (
        lambda out: edit(
            out / "comm.jsonl",
            lambda lines: lines + b'{"round": 2, "client": "eve", "acknowledged": true}\n',
        ),
        r"an update of eve to round 2 that the journal does not know",
    ),
    "emptied": (lambda out: edit(out / "comm.jsonl", lambda _: b""), r"comm\.jsonl is not what"),
}


@pytest.mark.parametrize("change", FURTHER)
def test_a_directory_that_was_further_is_refused_and_left_alone(
    run: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out)
    done, says = FURTHER[change]
    done(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(PrismError, match=says) as raised:
        resume(out)
    assert "\n" not in str(raised.value)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} <= {"round-000000.log"}
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("name", ["model.prism", "samples", "evaluation.jsonl"])
def test_a_model_or_a_picture_shows_it_too(tmp_path: Path, name: str) -> None:
    config: RunConfig = tiny_config(rounds=1)
    out = tmp_path / "out"
    asyncio.run(whole_run(config, out))
    (out / "evaluation.jsonl").write_text('{"round": 1}\n')
    for path in ("journal/checkpoint", "journal/round-000001.log", "metrics.jsonl", "comm.jsonl"):
        (out / path).unlink()
    for other in {"model.prism", "evaluation.jsonl"} - {name}:
        (out / other).unlink()
    if name != "samples":
        shutil.rmtree(out / "samples")
    with pytest.raises(StorageError, match="shows that the run was at round 1"):
        Engine(config, out)


def test_books_that_are_gone_are_begun_anew_and_that_is_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out)
    gone(out, "metrics.jsonl", "comm.jsonl")
    resume(out)
    assert caplog.text.count("is gone, and what it said of earlier rounds") == 2
    assert [line["round"] for line in jsonl(out / "metrics.jsonl")] == [1]
    assert [line["round"] for line in updates(out)] == [2, 2]
    asyncio.run(whole_run(tiny_config(), out))
    assert [line["round"] for line in jsonl(out / "metrics.jsonl")] == [1, 2]
    said = notes(Ledger.read(out))
    assert "too little: comm.jsonl lacks 3 updates that metrics.jsonl counts" in said


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    file, lines = LineFile.open(tmp_path / "lines", Mark())
    assert lines == []
    file.append({"round": 0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append({"round": 1, "client": "someone whose name takes more than is left"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    file.append({"round": 2})
    mark = file.mark()
    file.close()
    assert jsonl(tmp_path / "lines") == [{"round": 0}, {"round": 2}]
    again, lines = LineFile.open(tmp_path / "lines", mark)
    again.close()
    assert lines == []
