"""The client's side of the wire: a channel, deadlines, and domain objects in and out.

gRPC has no deadlines unless they are given, so every call has one. Small unary calls are
retried by service config; streams are not retried by gRPC, so the loop does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from client.channel import CALL_SECONDS, Channel
from client.messages import Assignment, Finished, Joined, Security, Wait
from client.privacy_guard import MECHANISMS
from common import PROTOCOL_VERSION
from common.address import Address
from common.codecs import MASK_CODECS, SCORE_CODECS, WEIGHT_CODECS
from common.codecs.difference import MAX_CLIENTS
from common.downlink import STATE_CODECS, StateStep
from common.errors import ConfigError, PayloadError, ProtocolError
from common.fingerprint import Fingerprint
from common.layout import SegmentSpec, codec_of
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from common.rpc.prism.v1.federation_pb2_grpc import FederationStub
from common.state import GlobalState
from common.tokens import Token
from common.wire import (
    SEGMENT_KINDS,
    SESSION_KEY,
    TOKEN_KEY,
    chunks,
    fingerprint_from_pb,
    fingerprint_to_pb,
    report_to_pb,
    step_from_pb,
)

STREAM_SECONDS = 600.0
POLL_SECONDS = 20.0

_CODECS = [
    *(pb.Codec.ValueType(codec.wire) for codec in MASK_CODECS),
    *(pb.Codec.ValueType(codec.wire) for codec in SCORE_CODECS),
    *(pb.Codec.ValueType(codec.wire) for codec in WEIGHT_CODECS),
]


class Transport:
    """One channel to one server. Every method may raise TransportError: try again later."""

    def __init__(self, address: Address, security: Security) -> None:
        if security.token_file is not None and (security.ca is None or security.cert is not None):
            raise ConfigError("--token-file needs --ca, and takes the place of --cert and --key")
        self._channel = Channel(address, security)
        self._token_file = security.token_file
        self._session = ""

    def join(
        self, name: str, instance: bytes, fingerprint: Fingerprint | None, wants_partition: bool
    ) -> Joined:
        """Ask for the run (no fingerprint), or enrol and open a session."""
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            client_name=name,
            instance=instance,
            codecs=_CODECS,
            state_codecs=[pb.StateCodec.ValueType(codec) for codec in STATE_CODECS],
            wants_partition=wants_partition,
            privacy_mechanisms=MECHANISMS,
        )
        if fingerprint is not None:
            request.fingerprint.CopyFrom(fingerprint_to_pb(fingerprint))
        with self._channel.errors():
            reply = self._stub.Join(
                request, timeout=self._channel.call_seconds(), metadata=self._proof()
            )
        self._session = reply.session
        return Joined(
            reply.config_toml,
            fingerprint_from_pb(reply.fingerprint),
            reply.lease_seconds,
            (reply.partition_index, reply.partition_count),
            reply.unix_seconds,
        )

    def await_round(self) -> Assignment | Wait | Finished:
        """Long poll for the next thing to do."""
        request = pb.AwaitRoundRequest(wait_seconds=POLL_SECONDS)
        with self._channel.errors():
            reply = self._stub.AwaitRound(
                request, timeout=POLL_SECONDS + CALL_SECONDS, metadata=self._metadata()
            )
        match reply.WhichOneof("outcome"):
            case "assignment":
                a = reply.assignment
                if not 0 <= a.rank < a.cohort_size < MAX_CLIENTS:
                    raise ProtocolError(f"the server assigned rank {a.rank} of {a.cohort_size}")
                return Assignment(a.round, a.state_digest, a.rank, a.cohort_size)
            case "finished":
                return Finished(reply.finished.round)
            case "wait":
                return Wait(reply.wait.reason)
            case _:
                raise ProtocolError("the server's answer to AwaitRound is empty")

    def fetch_state(self, round_: int, held: GlobalState | None, limit: int) -> list[StateStep]:
        """The steps from the held state, or from nothing, to the state of a round.

        Args:
            round_: whose state is wanted.
            held: what this side has.
            limit: bytes that the steps may take.

        Raises:
            PayloadError: the stream is longer, or not what its header says.
        """
        request = pb.FetchStateRequest(round=round_)
        if held is not None:
            request.holds_state = True
            request.held_round = held.round
            request.held_digest = held.digest()
        with self._channel.errors():
            stream = self._stub.FetchState(
                request, timeout=STREAM_SECONDS, metadata=self._metadata()
            )
            try:
                return _read_steps(iter(stream), limit)
            finally:
                stream.cancel()

    def submit(
        self,
        run_id: bytes,
        assignment: Assignment,
        segments: Sequence[tuple[SegmentSpec, bytes]],
        report: Report,
    ) -> None:
        """Stream one update, a payload for each segment of the run's layout."""
        payload = b"".join(data for _, data in segments)
        header = pb.UpdateHeader(
            run_id=run_id,
            round=assignment.round,
            rank=assignment.rank,
            cohort_size=assignment.cohort_size,
            payload_digest=hashlib.sha256(payload).digest(),
            report=report_to_pb(report),
        )
        for segment, data in segments:
            header.segments.add(
                kind=SEGMENT_KINDS[segment.kind],
                codec=pb.Codec.ValueType(codec_of(segment).wire),
                offset=segment.offset,
                count=segment.count,
                payload_bytes=len(data),
            )

        def messages() -> Iterator[pb.UpdateChunk]:
            yield pb.UpdateChunk(header=header)
            for data in chunks(payload):
                yield pb.UpdateChunk(data=data)

        with self._channel.errors():
            self._stub.SubmitUpdate(messages(), timeout=STREAM_SECONDS, metadata=self._metadata())

    def heartbeat(self) -> None:
        """Renew the lease."""
        with self._channel.errors():
            self._stub.Heartbeat(
                pb.HeartbeatRequest(), timeout=CALL_SECONDS, metadata=self._metadata()
            )

    def leave(self) -> None:
        """End the session."""
        with self._channel.errors(looking=False):
            self._stub.Leave(pb.LeaveRequest(), timeout=3, metadata=self._metadata())

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    @property
    def _stub(self) -> FederationStub:
        return self._channel.stub

    def _proof(self) -> tuple[tuple[str, str], ...]:
        """What proves this client's name, read again each time; raises ConfigError."""
        file = self._token_file
        return () if file is None else ((TOKEN_KEY, Token.read(file).secret),)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return ((SESSION_KEY, self._session),)


def _read_steps(messages: Iterator[pb.StateChunk], limit: int) -> list[StateStep]:
    first = next(messages, None)
    if first is None or first.WhichOneof("part") != "header":
        raise PayloadError("the state stream has no header")
    said = sum(step.payload_bytes for step in first.header.steps)
    if said > limit:
        raise PayloadError(f"the state stream would have {said} bytes, more than {limit}")
    data = bytearray()
    for message in messages:
        data += message.data
        if len(data) > said:
            break
    if len(data) != said:
        raise PayloadError(f"the state stream does not have the {said} bytes of its header")
    steps, at = [], 0
    for step in first.header.steps:
        steps.append(step_from_pb(step, bytes(data[at : at + step.payload_bytes])))
        at += step.payload_bytes
    return steps
