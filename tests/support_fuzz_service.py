"""Malformed requests of every RPC, from a seed: spoilt bytes, spoilt fields, spoilt sessions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from support import RawClient
from support_fuzz import spoil_bytes

from common.rpc.prism.v1 import federation_pb2 as pb
from common.wire import SERVICE, SESSION_KEY

RPCS = ("Join", "AwaitRound", "FetchState", "SubmitUpdate", "Heartbeat", "Leave", "GetStatus")
_NUMBERS = (0, 1, -1, 3, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "x", "\x00", "\n", "\x1b[2J", "é\u202e", "../../etc", "a" * 65, "a" * 100_000)


class Call:
    """One request, or one stream of them.

    Args:
        draw: of the seed.
        clients: one of which makes it.
        cohort: names by rank.
        state: digest of the state that the round starts from.

    Attributes:
        rpc: its name.
        messages: as bytes, in order.
        metadata: its session, or what stands in its place.
    """

    def __init__(
        self, draw: random.Random, clients: Sequence[RawClient], cohort: Sequence[str], state: bytes
    ) -> None:
        self._cohort = cohort
        self.rpc = draw.choice(RPCS)
        self.client = draw.choice(clients)
        # What is behind a session is tried mostly with one.
        known = draw.random() < (0.9 if self.rpc in {"SubmitUpdate", "FetchState"} else 0.6)
        session = self.client.session if known else _session(draw, self.client)
        self.metadata = ((SESSION_KEY, session),) if draw.random() < 0.97 else ()
        self.messages = [self._spoilt(draw, m) for m in self._good(draw, state)]
        if draw.random() < 0.1 and self.rpc == "SubmitUpdate":
            draw.shuffle(self.messages)

    async def make(self, channel: grpc.aio.Channel) -> Any:
        """Make the call; its answer's bytes, or the error."""
        path = f"/{SERVICE}/{self.rpc}"
        seconds = 0.5 if self.rpc == "AwaitRound" else 30.0
        options = {"metadata": self.metadata, "timeout": seconds}
        try:
            if self.rpc == "SubmitUpdate":
                return await channel.stream_unary(path)(self._stream(), **options)
            if self.rpc == "FetchState":
                call = channel.unary_stream(path)(self.messages[0], **options)
                return b"".join([part async for part in call])
            return await channel.unary_unary(path)(self.messages[0], **options)
        except grpc.aio.AioRpcError as error:
            return error

    async def _stream(self) -> AsyncIterator[bytes]:
        for message in self.messages:
            yield message

    def _good(self, draw: random.Random, state: bytes) -> list[Message]:
        """What a client would send in the first round."""
        match self.rpc:
            case "Join":
                return [self.client.join_request(wants_partition=draw.random() < 0.5)]
            case "AwaitRound":
                return [pb.AwaitRoundRequest(wait_seconds=0.01)]
            case "FetchState":
                return [pb.FetchStateRequest(holds_state=True, held_digest=state)]
            case "SubmitUpdate":
                return self._update(draw)
            case "Heartbeat":
                return [pb.HeartbeatRequest()]
            case "Leave":
                return [pb.LeaveRequest()]
            case _:
                return [pb.GetStatusRequest()]

    def _update(self, draw: random.Random) -> list[Message]:
        payload = self.client.payload(0)
        spoilt = spoil_bytes(draw, payload) if draw.random() < 0.5 else payload
        rank = self._cohort.index(self.client.name)
        place = pb.Assignment(round=0, rank=rank, cohort_size=len(self._cohort))
        header = self.client.header(place, spoilt if draw.random() < 0.7 else payload)
        if draw.random() < 0.3 and len(header.segments) == 1:
            header.segments[0].payload_bytes = len(spoilt)
        pieces = [spoilt[at : at + 64] for at in range(0, len(spoilt), 64)]
        return [pb.UpdateChunk(header=header), *(pb.UpdateChunk(data=piece) for piece in pieces)]

    def _spoilt(self, draw: random.Random, message: Message) -> bytes:
        often = 0.7 if self.rpc != "SubmitUpdate" else 0.1
        if message.ByteSize() and draw.random() < often:
            for _ in range(draw.choice((1, 1, 2))):
                _spoil_field(draw, message)
        content = message.SerializeToString()
        return spoil_bytes(draw, content) if draw.random() < often / 3 else content


def _session(draw: random.Random, client: RawClient) -> str:
    wrong = client.session[:-1] + draw.choice("abcdef")
    return draw.choice(("", "x", wrong, client.session * 20, hashlib.sha256().hexdigest()))


def _spoil_field(draw: random.Random, message: Message) -> None:
    """Give one field, or one of a part, another value of its type, or none."""
    field = draw.choice(message.DESCRIPTOR.fields)
    name, repeated = field.name, field.is_repeated
    if draw.random() < 0.1:
        message.ClearField(name)
    elif field.message_type is not None:
        parts = getattr(message, name)
        if repeated and (not parts or draw.random() < 0.2):
            parts.add()
        _spoil_field(draw, draw.choice(parts) if repeated else parts)
    elif repeated:
        values = getattr(message, name)
        values.extend([_value(draw, field, None)] * draw.choice((1, 1, 1000)))
    else:
        setattr(message, name, _value(draw, field, getattr(message, name)))


def _value(draw: random.Random, field: Any, value: Any) -> Any:
    if field.cpp_type in {field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT}:
        return draw.choice(_FLOATS)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if field.cpp_type == field.CPPTYPE_ENUM:
        return draw.choice((-1, *range(9), 2**31 - 1))
    if field.type == field.TYPE_BYTES:
        return spoil_bytes(draw, value) if value else draw.randbytes(draw.choice((0, 1, 36, 5000)))
    if field.cpp_type == field.CPPTYPE_STRING:
        return draw.choice(_TEXTS)
    bits = 32 if field.cpp_type in {field.CPPTYPE_INT32, field.CPPTYPE_UINT32} else 64
    number = draw.choice(_NUMBERS) % 2**bits
    unsigned = field.cpp_type in {field.CPPTYPE_UINT32, field.CPPTYPE_UINT64}
    return number if unsigned or number < 2 ** (bits - 1) else number - 2**bits
