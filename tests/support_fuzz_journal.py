"""What is fuzzed of a run directory: log, checkpoint and books, which a server resumes from.

What is read must be what a server can go on from, so inputs are taken up as a server does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError
from support import NAMES, clients, running, tiny_config
from support_fuzz import Target, spoil_bytes, spoil_json

from common.config import RunConfig
from common.files import sealed, unsealed
from server.engine import Engine
from server.frame_log import MARKER_BYTES, FrameLog, _frame

MARKER = bytes(range(MARKER_BYTES))
_KEPT = {".log", ".jsonl", ".toml", ""}
"""Suffixes of the files that reading may change."""


def targets(folder: Path) -> Iterator[Target]:
    """All of them; the folder becomes a run in its second round."""
    data, output = {"labels": "cells"}, {"sample_every": 0, "average": 1.0}
    config = tiny_config(rounds=3, alpha=0.3, data=data, output=output, codec={"down": "exact"})
    asyncio.run(_into_the_second_round(config, folder))
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in _KEPT]
    kept = {path: path.read_bytes() for path in files}
    log, checkpoint = folder / "journal" / "round-000001.log", folder / "journal" / "checkpoint"

    def resume() -> None:
        async def main() -> None:
            await Engine(config, folder).close()

        try:
            asyncio.run(main())
        finally:
            for path in folder.rglob("*"):
                if path.suffix in _KEPT and path.is_file() and path not in kept:
                    path.unlink()
            for path, content in kept.items():
                path.write_bytes(content)

    def reading(path: Path, prepared: Any = bytes) -> Any:
        def read(content: bytes) -> None:
            path.write_bytes(prepared(content))
            resume()

        return read

    yield Target("log", [kept[log]], reading(log), spoil_bytes, cost=1.0)
    opened, held = FrameLog.open(log)
    opened.close()
    entries = [json.dumps([[entry, payload.hex()] for entry, payload in held]).encode()]
    yield Target("log entries", entries, reading(log, _log), _spoil_entries, cost=1.0)
    body = unsealed(kept[checkpoint])
    yield Target("checkpoint", [kept[checkpoint]], reading(checkpoint), spoil_bytes, cost=3.0)
    yield Target("checkpoint header", [body], reading(checkpoint, sealed), _spoil_header)
    yield Target("checkpoint arrays", [body], reading(checkpoint, sealed), _spoil_arrays)
    for name in ("metrics.jsonl", "comm.jsonl"):
        path = folder / name
        yield Target(f"books {name}", [kept[path]], reading(path), _spoil_last_line)


async def _into_the_second_round(config: RunConfig, out: Path) -> None:
    async with running(config, out) as address, clients(config, address, *NAMES) as all_:
        for client in all_:
            await client.join(wants_partition=True)
        for client in all_:
            await client.submit(await client.assignment())
        for client in all_[:2]:
            while (assignment := await client.assignment()).round != 1:
                pass
            await client.submit(assignment)


def _log(content: bytes) -> bytes:
    """A log whose frames are good, of entries as JSON."""
    frames = []
    for one in json.loads(content):
        entry, payload = one if isinstance(one, list) and len(one) == 2 else (one, "")
        frames.append(_frame(MARKER, entry, bytes.fromhex(payload)))
    return MARKER + b"".join(frames)


def _spoil_entries(draw: Random, content: bytes) -> bytes:
    entries = json.loads(content)
    at = draw.randrange(1, len(entries))
    kind = draw.randrange(8)
    if kind == 0:
        del entries[at]
    elif kind == 1:
        entries.insert(at, draw.choice(entries))
    elif kind == 2:
        entries[at][1] = spoil_bytes(draw, bytes.fromhex(entries[at][1])).hex()
    else:
        try:
            entries[at][0] = json.loads(spoil_json(draw, json.dumps(entries[at][0]).encode()))
        except (ValueError, RecursionError):
            entries[at][0] = {}
    return json.dumps(entries).encode()


def _spoil_header(draw: Random, content: bytes) -> bytes:
    line, _, tensors = content.partition(b"\n")
    return spoil_json(draw, line) + b"\n" + tensors


def _spoil_arrays(draw: Random, content: bytes) -> bytes:
    """Other values, shapes or types, or an array fewer."""
    line, _, tensors = content.partition(b"\n")
    arrays = safetensors.numpy.load(tensors)
    name = draw.choice(sorted(arrays))
    kind = draw.randrange(5)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = arrays[name][: draw.randrange(len(arrays[name]) + 1)].copy()
    elif kind == 2:
        arrays[name] = arrays[name].astype(draw.choice(("u1", "<i2", "<i4", "<f4", "<f8")))
    elif kind == 3:
        arrays[name + "x"] = arrays.pop(name)
    else:
        try:
            spoilt = spoil_bytes(draw, tensors)
            safetensors.numpy.load(spoilt)
        except (SafetensorError, ValueError, KeyError, TypeError):
            return line + b"\n" + tensors[:-1]
        return line + b"\n" + spoilt
    return line + b"\n" + safetensors.numpy.save(arrays)


def _spoil_last_line(draw: Random, content: bytes) -> bytes:
    *lines, last = content.splitlines(keepends=True)
    return b"".join(lines) + spoil_json(draw, last) + draw.choice((b"\n", b""))
