"""What is fuzzed of what peers send each other: payloads, states, reports, errors, addresses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from support import random_payload, tiny_config
from support_fuzz import Target, spoil_bytes, spoil_json, spoil_text

from client.transport import _read_steps
from common.address import Address
from common.cells import CODE_SIZE, CellTable
from common.codecs import MASK_CODECS, SCORE_CODECS, WEIGHT_CODECS, CodecContext, MaskCodec
from common.config import RunConfig
from common.downlink import STATE_CODECS, StateStep, apply_steps, initial_state
from common.errors import PayloadError
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import GlobalState, initial_scores, sigma
from common.theory import MaskBits
from common.wire import error_of, report_from_pb, report_to_pb, step_to_pb
from prism.relay.shaping import Shape
from server.aggregate import Closed, PrismAggregator
from server.broadcast import Broadcast

_SIZE = 700
"""Parameters of a segment."""


def targets(folder: Path) -> Iterator[Target]:
    """All of them; no files are needed."""
    rng = np.random.default_rng(0)
    for codec in MASK_CODECS:
        yield from _masks(codec, rng)
    scores = rng.integers(-32768, 32768, _SIZE).astype(np.int16)
    for codec in SCORE_CODECS:
        yield Target(f"scores {codec.name}", [codec.encode(scores)], _scores(codec), spoil_bytes)
    weights = rng.normal(size=_SIZE).astype(np.float32)
    for codec in WEIGHT_CODECS:
        yield Target(f"weights {codec.name}", [codec.encode(weights)], _scores(codec), spoil_bytes)
    for down, method in (
        ("keyframe", "prism"),
        ("exact", "prism"),
        ("error-feedback", "prism"),
        ("keyframe", "fedavg"),
    ):
        yield _states(down, method)
    cells = CellTable.of(rng.normal(0, 5, (3, CODE_SIZE)), [20, 30, 10**8])
    yield Target("cells", [cells.content, b""], _cells, spoil_bytes)
    report = report_to_pb(Report(0.5, MaskBits(0.5, 0.1), (0, 1, 7), cells))
    yield Target("report", [report.SerializeToString()], _report, spoil_bytes)
    yield Target("state stream", _streams(rng), _stream, spoil_bytes)
    said = ["FAILED_PRECONDITION", "text", {"prism-error": "WrongRound", "prism-round": "7"}]
    busy = ["RESOURCE_EXHAUSTED", "text", {"prism-error": "Busy", "prism-retry-seconds": "9"}]
    both = [json.dumps(one).encode() for one in (said, busy)]
    yield Target("error", both, _error, spoil_json)
    addresses = [b"host.example:7171", b"[::1]:7171", b"127.0.0.1:0", b"http://h:1", b"*:7171"]
    yield Target("address", addresses, _address, spoil_text)
    yield Target("rate and delay", [b"1mbit 50ms", b"2.5 kbit 1s"], _shape, spoil_text)


def _masks(codec: MaskCodec, rng: np.random.Generator) -> Iterator[Target]:
    scores = initial_scores(_SIZE, 3)
    for share in (1.0, 0.25):
        context = CodecContext(1, 2, 1, 3, 64, scores, share)
        mask = codec.sample(sigma(scores[::-1].copy()), context, rng)
        likely = codec.sample(sigma(scores), context, rng)

        def read(content: bytes, context: CodecContext = context) -> None:
            decoded = codec.decode(content, context)
            assert codec.encode(decoded, context) == content, "another payload means the same"

        good = [codec.encode(one, context) for one in (mask, likely)]
        yield Target(f"mask {codec.name} {share}", good, read, spoil_bytes, cost=4.0)


def _scores(codec: Any) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        assert codec.encode(codec.decode(content, _SIZE)) == content

    return read


def _states(down: str, method: str) -> Target:
    """Chains of one or two steps, as JSON: codec, round and payload of each."""
    codec = {} if method == "fedavg" else {"codec": {"down": down}}
    config = tiny_config(method=method, **codec)
    held = initial_state(config)
    broadcast = Broadcast(config, held)
    chains = [list(broadcast.steps(None))]
    for round_ in range(2):
        _advance(config, broadcast, round_)
        chains.append(list(broadcast.steps((0, held.digest()))))
    good = [_chain(steps) for steps in chains if steps]

    def read(content: bytes) -> None:
        steps = [_step(raw) for raw in json.loads(content)]
        state = apply_steps(config, held, steps)
        assert state.dimension == held.dimension and state.values.dtype == held.values.dtype

    def spoil(draw: Any, content: bytes) -> bytes:
        steps = json.loads(content)
        step = draw.choice(steps)
        if draw.random() < 0.8:
            step[2] = spoil_bytes(draw, bytes.fromhex(step[2])).hex()
        else:
            step[0] = draw.choice((*STATE_CODECS, 0, 99, -1))
            step[1] = draw.choice((0, 1, 2, 3, 2**32 - 1, 2**63, 2**64 - 1))
        return json.dumps(steps).encode()

    return Target(f"state {method} {down}", good, read, spoil, cost=8.0)


def _advance(config: RunConfig, broadcast: Broadcast, round_: int) -> None:
    state = broadcast.state
    if config.method == "fedavg":
        moved = GlobalState(round_ + 1, state.weights * np.float32(0.5))
        broadcast.publish(Closed(moved, None, 1))
        return
    aggregator = PrismAggregator(config, state, 2)
    for rank, name in enumerate(("ann", "bob")):
        payload = random_payload(config, name, round_)
        aggregator.fold(aggregator.decode([payload], rank))
    broadcast.publish(aggregator.close())


def _chain(steps: list[StateStep]) -> bytes:
    return json.dumps([[s.codec, s.round, s.payload.hex()] for s in steps]).encode()


def _step(raw: list[Any]) -> StateStep:
    message = pb.StateStep(codec=max(raw[0], 0), round=max(raw[1], 0))
    return StateStep(message.codec, message.round, bytes.fromhex(raw[2]))


def _cells(content: bytes) -> None:
    table = CellTable.read(content)
    assert CellTable.of(table.codes, table.counts) == table
    table.drawn(5)


def _parsed(message: Message, content: bytes) -> Any:
    """A message of the wire; what does not parse, gRPC's interceptor refuses."""
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise PayloadError("it does not parse") from error
    return message


def _report(content: bytes) -> None:
    report = report_from_pb(_parsed(pb.ClientReport(), content))
    assert report_from_pb(report_to_pb(report)) == report


def _streams(rng: np.random.Generator) -> list[bytes]:
    """A state's messages, each after its length."""
    steps = [StateStep(1, 3, rng.bytes(90)), StateStep(3, 4, rng.bytes(30))]
    header = pb.StateHeader(steps=[step_to_pb(step) for step in steps])
    payload = b"".join(step.payload for step in steps)
    messages = [pb.StateChunk(header=header), pb.StateChunk(data=payload[:64])]
    messages.append(pb.StateChunk(data=payload[64:]))
    framed = [message.SerializeToString() for message in messages]
    return [b"".join(len(one).to_bytes(2, "little") + one for one in framed)]


def _stream(content: bytes) -> None:
    messages, at = [], 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 2], "little")
        messages.append(_parsed(pb.StateChunk(), content[at + 2 : at + 2 + length]))
        at += 2 + length
    assert sum(len(step.payload) for step in _read_steps(iter(messages), 200)) <= 200


def _error(content: bytes) -> None:
    try:
        status, text, trailing = json.loads(content)
        items = list(trailing.items())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return
    error = error_of(str(status), str(text), [(str(k), v) for k, v in items])
    assert str(error).isprintable(), error


def _address(content: bytes) -> None:
    address = Address.parse(content.decode(errors="replace"))
    assert Address.parse(str(address)) == address


def _shape(content: bytes) -> None:
    rate, _, delay = content.decode(errors="replace").partition(" ")
    shape = Shape.parse(rate or None, delay or None)
    assert shape.chunk > 0
