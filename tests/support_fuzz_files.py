"""What is fuzzed of what people and crashes do to files: of a run, a client, a server's operator.

Where a digest protects a file, it is made anew for most inputs, as a hand would; then what the
file holds is looked at, too.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from support import tiny_config
from support_fuzz import Target, spoil_bytes, spoil_json, spoil_pem, spoil_text

from client.ledger import Entry, Ledger, _hash
from client.store import ClientStore, MadeUpdate
from common.cells import CODE_SIZE, CellTable
from common.config import load_config, parse_config
from common.downlink import initial_state
from common.errors import ConfigError, printable
from common.files import sealed
from common.model.export import _FORMAT, _digest, build_model, load_model
from common.pem import CLIENT, SERVER, read_authorities, read_pair
from common.report import Report
from common.theory import MaskBits
from common.tokens import Token, read_proofs
from prism.certificates import Authority, Subject, read_request, request
from prism.comm.report import report
from prism.comm.traffic import Ledger as Traffic
from prism.commands.certs import _described
from server.admission import Admission

RUN_ID = bytes(range(32))


def targets(folder: Path) -> Iterator[Target]:
    """All of them; their files are in the folder."""
    makers = (_configs, _models, _clients, _ledger, _operators, _costs)
    for number, make in enumerate(makers):
        own = folder / str(number)
        own.mkdir()
        yield from make(own)


def _configs(folder: Path) -> Iterator[Target]:
    path = folder / "run.toml"
    every = tiny_config(output={"sample_every": 3}, data={"labels": "cells"}).to_toml()
    good = [every.encode(), b'rounds = 3\n[data]\nname = "mnist"\nclients = 2\n', b"\xef\xbb\xbf"]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        config = load_config(path)
        assert parse_config(config.to_toml()) == config

    yield Target("config", good, read, spoil_text, cost=8.0, lines=True)

    def override(content: bytes) -> None:
        parse_config("", [content.decode(errors="replace")])

    overrides = [b"train.local_steps=50", b"data.classes=['a', 'b']", b"name=x", b"data.name=mnist"]
    yield Target("override", overrides, override, spoil_text, cost=2.0, lines=True)


def _models(folder: Path) -> Iterator[Target]:
    path = folder / "model.prism"
    cells = CellTable.of(np.ones((2, CODE_SIZE)), [20, 30])
    good = []
    for config, of_images in (
        (tiny_config(), {}),
        (tiny_config(method="fedavg"), {}),
        (tiny_config(data={"labels": "cells"}), {"cells": cells}),
    ):
        build_model(config, initial_state(config), **of_images).save(path)
        good.append(path.read_bytes())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        model = load_model(path)
        model.label_of(model.class_names[0]) if model.class_names else None
        assert len(model.sample(1)) == 1

    def signed(content: bytes) -> bytes:
        """With a digest that fits, if it is a file of tensors at all."""
        try:
            header, tensors = _parts(content)
        except (SafetensorError, ValueError, KeyError, TypeError):
            return content
        return _model_file(header, tensors)

    yield Target("model", good, read, lambda draw, content: spoil_bytes(draw, content), cost=3.0)
    yield Target(
        "model tensors",
        good,
        read,
        lambda draw, content: signed(spoil_bytes(draw, content)),
        cost=20.0,
    )

    def spoil_header(draw: Any, content: bytes) -> bytes:
        header, tensors = _parts(content)
        # The header's values are texts; some of them of JSON.
        key = draw.choice(sorted(header.keys() - {"digest"}))
        header[key] = spoil_json(draw, header[key].encode()).decode(errors="replace")
        return _model_file(header, tensors)

    yield Target("model header", good, read, spoil_header, cost=20.0)


def _parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    return json.loads(head["__metadata__"][_FORMAT]), safetensors.numpy.load(content)


def _model_file(header: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    header = {k: v for k, v in header.items() if k != "digest"}
    texts = {str(k): str(v) for k, v in header.items()}
    metadata = {_FORMAT: json.dumps({**header, "digest": _digest(texts, tensors)})}
    return safetensors.numpy.save(tensors, metadata=metadata)


def _clients(folder: Path) -> Iterator[Target]:
    store = ClientStore(folder, None)
    update = MadeUpdate(3, 0, 2, (b"abc", b"d"), Report(0.5, MaskBits(0.5, 0.1), (0, 2)), 1.5)
    trainer = {"step": 3, "scores": torch.zeros(4), "names": ["a"]}
    store.save(RUN_ID, trainer, update)
    kept, identity = folder / "trainer.pt", folder / "client.json"
    whole = kept.read_bytes()[32:]

    def load() -> None:
        found = store.load(RUN_ID)
        if found is not None:
            trainer, update = found
            assert isinstance(trainer, dict) and all(type(p) is bytes for p in update.payloads)
            assert 0 <= update.rank < update.cohort_size and update.round >= 0
            assert update.report.loss is None or isinstance(update.report.loss, float)

    def read(content: bytes) -> None:
        kept.write_bytes(content if content.startswith(b"raw") else sealed(content))
        load()

    yield Target("client's state", [whole, b"raw" + whole], read, spoil_bytes, cost=30.0)
    saved = torch.load(io.BytesIO(whole), weights_only=True)
    plain = {**saved, "trainer": {"step": 3}, "payloads": [[1, 2], [3]]}

    def read_values(content: bytes) -> None:
        buffer = io.BytesIO()
        torch.save(_with_tensors(json.loads(content)), buffer)
        kept.write_bytes(sealed(buffer.getvalue()))
        load()

    def spoil_values(draw: Any, content: bytes) -> bytes:
        spoilt = spoil_json(draw, content)
        try:
            json.loads(spoilt)
        except (ValueError, RecursionError):
            return content
        return spoilt

    values = [json.dumps(plain).encode()]
    yield Target("client's values", values, read_values, spoil_values, cost=60.0)
    store.identity()
    store.close()

    def read_identity(content: bytes) -> None:
        identity.write_bytes(content)
        ClientStore.identity(store)

    named = [json.dumps({"name": "ann", "instance": "00" * 16}).encode(), identity.read_bytes()]
    yield Target("client's name", named, read_identity, spoil_json, cost=60.0)


def _with_tensors(saved: Any) -> Any:
    """Payloads and bits as `ClientStore` keeps them, where they are still lists."""
    try:
        payloads = [torch.tensor(one, dtype=torch.uint8) for one in saved["payloads"]]
        return {**saved, "payloads": payloads, "bits": tuple(saved["bits"])}
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        return saved


def _ledger(folder: Path) -> Iterator[Target]:
    ledger = Ledger(folder)
    entry = Entry(
        "moments", "ab", None, 9, "cd", {"pool": 4}, 7, (0.1,), (1.0,), 1.0, 1e-5, None, time="now"
    )
    raw = json.loads(json.dumps(asdict(entry)))

    def read(content: bytes) -> None:
        ledger.path.write_bytes(content)
        for found in ledger.entries():
            assert found.mu >= 0

    def signed(draw: Any, content: bytes) -> bytes:
        """The entry with a hash that fits."""
        try:
            changed = json.loads(spoil_json(draw, content))
            mine = _hash(changed, "0" * 64)
            line = {**changed, "previous": "0" * 64, "hash": mine}
        except (ValueError, TypeError, RecursionError):
            return content
        (folder / "ledger.head").write_text(mine)
        return json.dumps(line).encode() + b"\n"

    yield Target("ledger", [json.dumps(raw).encode()], read, signed, cost=5.0)


def _operators(folder: Path) -> Iterator[Target]:
    """Files that whoever runs a server or a client makes, or is given."""
    Authority.make(folder, "ca", 9)
    authority = Authority.read(folder)
    authority.issue(folder, Subject.server(["host.example", "192.0.2.7"]), 9)
    request(folder, Subject.client("bob"))
    made = [(folder / name).read_bytes() for name in ("ca.pem", "host.example.pem")]
    key, csr = ((folder / name).read_bytes() for name in ("host.example.key", "bob.csr"))
    path, other = folder / "read", folder / "host.example.pem"
    path.touch(mode=0o600)

    def reading(*readers: Callable[[Path], object]) -> Callable[[bytes], None]:
        def read(content: bytes) -> None:
            path.write_bytes(content)
            for reader in readers[:-1]:
                with contextlib.suppress(ConfigError):
                    reader(path)
            readers[-1](path)

        return read

    def show(path: Path) -> None:
        assert all(printable(line).isprintable() for line in _described(path))

    chain = reading(
        read_authorities, lambda path: read_pair(path, folder / "host.example.key", SERVER), show
    )
    pair = reading(lambda path: read_pair(other, path, CLIENT))
    token = Token.make("ann")
    lists = [b"ann\nbob # x\n# no\n\n", token.proof.encode(), b"\xef\xbb\xbfann\n"]
    yield Target("certificate", made, chain, spoil_pem, cost=4.0)
    yield Target("key", [key], pair, spoil_pem, cost=4.0)
    yield Target("request", [csr], reading(read_request), spoil_pem, cost=4.0)
    yield Target("token", [token.line.encode()], reading(Token.read), spoil_text, cost=2.0)
    both = reading(read_proofs, lambda path: Admission(path))
    yield Target("lists", lists, both, spoil_text, cost=2.0)


def _costs(folder: Path) -> Iterator[Target]:
    """A run's lines, for `prism comm`."""
    (folder / "config.toml").write_text(tiny_config().to_toml())
    (folder / "relay").mkdir()
    call = {"round": 0, "client": "ann", "direction": "up", "rpc": "SubmitUpdate"}
    call |= {"payload_bytes": 9, "message_bytes": 20, "calls": 1, "kl_bits": 0.1, "time": "x"}
    closed = {"round": 0, "clients": 3, "entropy_bits": 0.5}
    counts = {"relay": "x", "connections": 1, "tls": True, "up_received": 500, "up_delivered": 9}
    counts |= {"down_received": 500, "down_delivered": 9}
    files = {"comm.jsonl": call, "metrics.jsonl": closed, "relay/ann.jsonl": counts}
    for name, line in files.items():
        (folder / name).write_text(json.dumps(line) + "\n")
    for name, line in files.items():

        def read(content: bytes, path: Path = folder / name) -> None:
            before = path.read_bytes()
            path.write_bytes(content + b"\n")
            try:
                json.dumps(report(Traffic.read(folder)), allow_nan=False)
            finally:
                path.write_bytes(before)

        yield Target(name, [json.dumps(line).encode()], read, spoil_json, cost=25.0)
