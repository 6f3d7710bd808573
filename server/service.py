"""The contract's RPCs: protobuf in, domain objects through the engine, protobuf out.

No policy lives here. What a header may say is fixed by the run's layout and checked before
a byte of the payload is kept; what may happen when is the state machine's business. Errors
of the tree become statuses in `interceptors`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Final

from common import PROTOCOL_VERSION
from common.errors import (
    PayloadError,
    PayloadTooLarge,
    ProtocolError,
    RunMismatch,
    TransportError,
)
from common.layout import codec_of, update_layout
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from common.rpc.prism.v1.federation_pb2_grpc import FederationServicer
from common.wire import (
    SEGMENT_KINDS,
    fingerprint_from_pb,
    fingerprint_to_pb,
    report_from_pb,
    session_of,
)
from server.encoded import EncodedStates
from server.engine import Engine
from server.events import Assignment, Finished
from server.intake import IDLE_SECONDS
from server.interceptors import Context
from server.members import check_identity
from server.status import status_to_pb
from server.traffic import METER

MAX_WAIT_SECONDS: Final = 60.0
_STATE_CODECS: Final = {
    "keyframe": frozenset({pb.STATE_CODEC_KEYFRAME}),
    "exact": frozenset({pb.STATE_CODEC_KEYFRAME_ENTROPY, pb.STATE_CODEC_EXACT}),
    "error-feedback": frozenset({pb.STATE_CODEC_KEYFRAME_ENTROPY, pb.STATE_CODEC_ERROR_FEEDBACK}),
}


class FederationService(FederationServicer):
    """See `proto/prism/v1/federation.proto` for what each RPC does and raises."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._config = engine.config
        self._layout = update_layout(engine.config)
        self._encoded = EncodedStates()
        # A poll renews the lease, so polling alone must keep a client alive.
        self._longest_wait = min(MAX_WAIT_SECONDS, engine.config.round.lease_seconds / 2)

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:  # noqa: ARG002, N802
        """Teach the run, or enrol a client in it."""
        if request.protocol_version != PROTOCOL_VERSION:
            raise RunMismatch(
                f"the server speaks protocol {PROTOCOL_VERSION}, the client "
                f"{request.protocol_version}: install the same version on both"
            )
        check_identity(request.client_name, request.instance)
        response = pb.JoinResponse(
            config_toml=self._config.to_toml(),
            fingerprint=fingerprint_to_pb(self._engine.fingerprint),
            lease_seconds=self._config.round.lease_seconds,
            partition_count=self._config.data.clients,
            unix_seconds=time.time(),
        )
        if request.HasField("fingerprint"):
            self._check_peer(request)
            response.session, partition = await self._engine.join(
                request.client_name, request.instance, request.wants_partition
            )
            if request.wants_partition and partition is not None:
                response.partition_index = partition
        response.round = self._engine.rounds.round
        return response

    async def AwaitRound(  # noqa: N802
        self, request: pb.AwaitRoundRequest, context: Context
    ) -> pb.AwaitRoundResponse:
        """Answer as soon as there is something to do."""
        if not request.wait_seconds >= 0:
            raise ProtocolError("wait_seconds is a number of seconds, 0 or more")
        seconds = min(request.wait_seconds, self._longest_wait)
        outcome = await self._engine.await_round(session_of(context.invocation_metadata()), seconds)
        digest = self._engine.broadcast.digest
        if isinstance(outcome, Assignment):
            return pb.AwaitRoundResponse(
                assignment=pb.Assignment(
                    round=outcome.round,
                    state_digest=digest,
                    rank=outcome.rank,
                    cohort_size=outcome.cohort_size,
                    deadline_seconds=outcome.seconds_left,
                )
            )
        if isinstance(outcome, Finished):
            return pb.AwaitRoundResponse(
                finished=pb.Finished(round=outcome.round, state_digest=digest)
            )
        return pb.AwaitRoundResponse(
            wait=pb.Wait(
                reason=outcome.reason, live_clients=outcome.live, min_clients=outcome.needed
            )
        )

    async def FetchState(  # noqa: N802
        self,
        request: pb.FetchStateRequest,
        context: Context,
    ) -> AsyncIterator[pb.StateChunk]:
        """Stream what the client lacks of the current state."""
        held = (request.held_round, request.held_digest) if request.holds_state else None
        steps = self._engine.steps(request.round, held)
        digest = self._engine.broadcast.digest
        with self._engine.intake.stream(session_of(context.invocation_metadata())):
            for message in self._encoded.messages(request.round, digest, steps):
                yield message

    async def SubmitUpdate(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UpdateChunk], context: Context
    ) -> pb.SubmitUpdateResponse:
        """Take in one update; acknowledged means durable."""
        with self._engine.intake.stream(session_of(context.invocation_metadata())):
            return await self._submit(request_iterator, context)

    async def _submit(
        self, request_iterator: AsyncIterator[pb.UpdateChunk], context: Context
    ) -> pb.SubmitUpdateResponse:
        header = await _header(request_iterator)
        sizes = self._check_header(header)
        report = report_from_pb(header.report)
        self._check_report(report)
        session = session_of(context.invocation_metadata())
        place, digest = (header.rank, header.cohort_size), header.payload_digest
        taken = self._engine.intake.upload(session, header.round, place, digest, sizes)
        async with taken as upload:
            if upload is None:
                return pb.SubmitUpdateResponse(round=header.round, duplicate=True)
            await self._engine.intake.read(upload, _pieces(request_iterator))
            await self._engine.submit(upload, report, METER.get())
        return pb.SubmitUpdateResponse(round=header.round)

    async def Heartbeat(  # noqa: N802
        self,
        request: pb.HeartbeatRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.HeartbeatResponse:
        """Say how long the lease is; that it was asked has renewed it."""
        return pb.HeartbeatResponse(lease_seconds=self._config.round.lease_seconds)

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:  # noqa: ARG002, N802
        """End the session."""
        await self._engine.leave(session_of(context.invocation_metadata()))
        return pb.LeaveResponse()

    async def GetStatus(  # noqa: N802
        self,
        request: pb.GetStatusRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.GetStatusResponse:
        """Say where the run stands."""
        return status_to_pb(self._engine)

    def _check_report(self, report: Report) -> None:
        """Refuse classes and cells that the run does not have; raises ProtocolError."""
        if report.classes and report.classes[-1] >= len(self._config.classes):
            raise ProtocolError(f"this run has {len(self._config.classes)} classes")
        data, cells = self._config.data, report.cells
        if not self._config.uses_cells:
            if cells:
                raise ProtocolError("this run has no cells")
        elif not 1 <= len(cells) <= data.cells:
            raise ProtocolError(f"a client of this run has 1 to {data.cells} cells")
        elif (cells.counts < data.min_class_size).any():
            raise ProtocolError(f"cells of this run have {data.min_class_size} images or more")

    def _check_peer(self, request: pb.JoinRequest) -> None:
        """Refuse a client that could not take part; raises RunMismatch."""
        self._engine.fingerprint.check(fingerprint_from_pb(request.fingerprint))
        needed = {codec_of(segment).wire for segment in self._layout}
        if lacking := needed - set(request.codecs):
            names = ", ".join(pb.Codec.Name(pb.Codec.ValueType(wire)) for wire in sorted(lacking))
            raise RunMismatch(f"the client lacks what updates of this run are coded with: {names}")
        privacy = self._config.privacy
        if privacy.require and privacy.mechanism not in request.privacy_mechanisms:
            raise RunMismatch(
                f"this run requires clients that apply privacy.mechanism {privacy.mechanism}"
            )
        if unread := _STATE_CODECS[self._config.codec.down] - set(request.state_codecs):
            names = ", ".join(pb.StateCodec.Name(codec) for codec in sorted(unread))
            raise RunMismatch(f"the client lacks what states of this run are coded with: {names}")

    def _check_header(self, header: pb.UpdateHeader) -> tuple[int, ...]:
        """Payload bytes of each segment, all within what this run can need.

        Raises:
            RunMismatch, PayloadError, PayloadTooLarge: see the contract.
        """
        if header.run_id != self._engine.fingerprint.run_id:
            raise RunMismatch("the update is for another run: join again")
        if len(header.payload_digest) != hashlib.sha256().digest_size:
            raise PayloadError("payload_digest is not a SHA-256")
        expected = [
            (SEGMENT_KINDS[spec.kind], codec_of(spec).wire, spec.offset, spec.count)
            for spec in self._layout
        ]
        given = [(s.kind, s.codec, s.offset, s.count) for s in header.segments]
        if given != expected:
            raise PayloadError("the segments are not those of this run: wrong kind, codec or range")
        for spec, segment in zip(self._layout, header.segments, strict=True):
            most = codec_of(spec).max_bytes(spec.count)
            if segment.payload_bytes > most:
                raise PayloadTooLarge(
                    f"a {spec.kind} segment of {segment.payload_bytes} bytes; "
                    f"{spec.codec} of {spec.count} parameters takes at most {most}"
                )
        return tuple(segment.payload_bytes for segment in header.segments)


async def _header(messages: AsyncIterator[pb.UpdateChunk]) -> pb.UpdateHeader:
    """The first message of an update; raises PayloadError and TransportError."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            first = await anext(messages, None)
    except TimeoutError:
        raise TransportError(f"no header of an update for {IDLE_SECONDS:.0f} s") from None
    if first is None or first.WhichOneof("part") != "header":
        raise PayloadError("an update begins with its header")
    return first.header


async def _pieces(messages: AsyncIterator[pb.UpdateChunk]) -> AsyncIterator[bytes]:
    """The payload of an update, as it comes after the header; raises PayloadError."""
    async for message in messages:
        if message.WhichOneof("part") != "data":
            raise PayloadError("an update has one header, then data")
        yield message.data
