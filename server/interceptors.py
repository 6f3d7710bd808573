"""What every call goes through: sessions, identity, exact bytes, and errors as statuses.

The interceptor takes the (de)serialisers out of gRPC's hands and calls them itself, so the
bytes that it counts are the messages as they travel, and a message that does not parse is
the peer's mistake and not an internal error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, cast

import grpc
import grpc.aio

from common.address import Address
from common.errors import (
    Busy,
    IdentityMismatch,
    PayloadError,
    PrismError,
    SessionUnknown,
)
from common.wire import SERVICE, error_metadata, session_of, token_of
from server.admission import EVERYBODY, Admission
from server.engine import Engine
from server.limits import Limits
from server.members import check_identity
from server.status import without_names
from server.strangers import Strangers, peer_address
from server.traffic import METER, Direction, Meter, Traffic

_WITHOUT_SESSION: Final = frozenset({"Join", "GetStatus"})
_SUMMED: Final = frozenset({"AwaitRound", "Heartbeat", "GetStatus"})

# Generic in the stubs alone, so the aliases stay text at run time.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

log = logging.getLogger(__name__)


class Gate(grpc.aio.ServerInterceptor):
    """The one interceptor of the server; other services' messages pass through it untouched.

    Args:
        engine: knows the sessions and keeps the record.
        certified: whether clients show certificates, which then must bear their names.
        admission: which names may take part.
        strangers: is told who makes calls.
    """

    def __init__(
        self,
        engine: Engine,
        certified: bool,
        admission: Admission = EVERYBODY,
        strangers: Strangers | None = None,
    ) -> None:
        self.engine = engine
        self.certified = certified
        self.admission = admission
        self.limits = Limits(engine.config)
        self._strangers = strangers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handlers of this project's service."""
        handler: Handler | None = await continuation(handler_call_details)
        service, _, rpc = handler_call_details.method.strip("/").partition("/")
        if handler is None:
            return None
        return self._wrap(rpc, handler) if service == SERVICE else self._noted(handler)

    def _noted(self, handler: Handler) -> Any:
        """A handler of another service, whose callers are no strangers either."""
        inner, strangers = cast(Any, handler).unary_unary, self._strangers
        if inner is None or strangers is None:
            return handler

        async def unary_unary(request: Any, context: Context) -> Any:
            strangers.heard(context.peer())
            return await inner(request, context)

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _wrap(self, rpc: str, handler: Handler) -> Any:
        inner = cast(Any, handler)

        async def unary_unary(raw: bytes, context: Context) -> bytes:
            async with self._call(rpc, handler, context) as call:
                return call.sent(await inner.unary_unary(call.received(raw), context))

        async def unary_stream(raw: bytes, context: Context) -> AsyncIterator[bytes]:
            async with self._call(rpc, handler, context) as call:
                async for message in inner.unary_stream(call.received(raw), context):
                    yield call.sent(message)

        async def stream_unary(raws: AsyncIterator[bytes], context: Context) -> bytes:
            async with self._call(rpc, handler, context) as call:
                return call.sent(await inner.stream_unary(_received(call, raws), context))

        # gRPC's stubs describe the handlers of its synchronous server alone.
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(cast(Any, stream_unary))
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(cast(Any, unary_stream))
        return grpc.unary_unary_rpc_method_handler(cast(Any, unary_unary))

    @asynccontextmanager
    async def _call(self, rpc: str, handler: Handler, context: Context) -> AsyncIterator[_Call]:
        """One call: let in, metered, its errors turned into statuses."""
        if self._strangers is not None:
            self._strangers.heard(context.peer())
        call = _Call(self, rpc, handler, context)
        try:
            call.let_in()
            yield call
            call.useful = True
        except PrismError as error:
            call.failed(error)
            code = grpc.StatusCode[error.status]
            if not isinstance(error, Busy) or call.tells():
                log.info("%s of %s: %s: %s", rpc, call.caller, code.name, error)
            await context.abort(code, " ".join(str(error).split()), error_metadata(error))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            self.engine.recorder.telemetry.errors.count(error)
            log.exception("%s of %s failed", rpc, call.caller)
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed; its log says how")
        finally:
            call.record()
            call.charge()


class _Call:
    """One call's bytes, and whose they are."""

    def __init__(self, gate: Gate, rpc: str, handler: Handler, context: Context) -> None:
        self._engine = engine = gate.engine
        self._admission = gate.admission
        self._limits = gate.limits
        self._rpc = rpc
        self._handler = handler
        self._session = session_of(context.invocation_metadata())
        self._token = token_of(context.invocation_metadata())
        self._certificate = _names(context) if gate.certified else None
        self._round = engine.rounds.round
        self._peer = peer_address(context.peer())
        self._meter = Meter()
        METER.set(self._meter)
        self._host = self._peer.rpartition(":")[0]
        self.client = ""
        self.useful = False

    @property
    def caller(self) -> str:
        """Who calls, for the log."""
        return f"{self.client or 'a stranger'} at {self._peer}"

    def let_in(self) -> None:
        """Check the session, and that it belongs to the certificate's bearer.

        Raises:
            SessionUnknown, IdentityMismatch, NotAdmitted, Busy: as they say.
        """
        now = time.monotonic()
        self._limits.call(self._rpc, self._host, now)
        if self._rpc in _WITHOUT_SESSION:
            return
        try:
            self.client = self._engine.renew(self._session)
        except SessionUnknown:
            if self._rpc != "Leave":
                raise
        else:
            self._check_identity()
            self._limits.session(self.client, now)

    def received(self, raw: bytes) -> Any:
        """Meter and parse a request; each one renews the lease.

        Raises:
            PayloadError: it does not parse.
        """
        try:
            message = cast(Any, self._handler).request_deserializer(raw)
        except Exception as error:
            raise PayloadError(f"the message of {self._rpc} does not parse") from error
        self._count("up", message, len(raw))
        if self._rpc == "Join":
            if not message.client_name and self._certificate:
                message.client_name = self._certificate[0]
            # Nobody's words reach the log or the ledger before they are checked.
            check_identity(message.client_name, message.instance)
            self.client = message.client_name
            self._check_identity()
            self._admission.check_token(self.client, self._token)
            if message.HasField("fingerprint") and not self._proves_names():
                self._limits.enrol(self._host, self._engine.knows)
        elif self.client and self._handler.request_streaming:
            self._engine.renew(self._session)
        return message

    def sent(self, message: Any) -> bytes:
        """Serialise and meter a response."""
        if self._rpc == "Join" and message.session:
            self._limits.opened(self._host, message.session)
        if self._rpc == "GetStatus" and not self._may_know_names():
            without_names(message)
        raw: bytes = cast(Any, self._handler).response_serializer(message)
        self._count("down", message, len(raw))
        return raw

    def record(self) -> None:
        """Hand the sums to the recorder, but for an update that the journal has."""
        # A poll belongs to the round that it ends in: it may be what started it.
        summed = self._rpc in _SUMMED or not self.client
        round_ = self._engine.rounds.round if summed else self._round
        log.debug("%s of %s: %s bytes", self._rpc, self.caller, self._meter.message)
        directions: tuple[Direction, ...] = ("up", "down")
        for direction in directions:
            traffic = Traffic(
                round=round_,
                client=self.client,
                direction=direction,
                rpc=self._rpc,
                payload_bytes=self._meter.payload[direction],
                message_bytes=self._meter.message[direction],
                summed=summed,
            )
            self._engine.recorder.telemetry.traffic(traffic)
            if direction == "down" or not self._meter.journalled:
                self._engine.recorder.traffic(traffic)

    def failed(self, error: PrismError) -> None:
        """Count what the call ended in, and keep it for whoever asks."""
        recorder = self._engine.recorder
        recorder.telemetry.errors.count(error)
        recorder.recent.failed(self._rpc, self.caller, self._host, error)

    def tells(self) -> bool:
        """Whether the log is to have a line of this refusal, too."""
        return self._limits.tells(self._host, time.monotonic())

    def charge(self) -> None:
        """Set what this call took against the budget of its client, or of its address."""
        now = time.monotonic()
        if not self.useful:
            in_session = self.client and self._rpc != "Join"
            client = self.client if in_session else ""
            self._limits.wasted(self._host, client, self._meter.message["up"], now)
        if self._rpc == "FetchState" and self.client:
            self._limits.fetched(self.client, self._round, self._meter.message["down"], now)

    def _proves_names(self) -> bool:
        return self._certificate is not None or self._admission.asks_tokens

    def _count(self, direction: Direction, message: Any, size: int) -> None:
        # Updates and states are the two streams of this service: a header, then data.
        streams = {"up": self._handler.request_streaming, "down": self._handler.response_streaming}
        self._meter.count(direction, len(message.data) if streams[direction] else 0, size)

    def _check_identity(self) -> None:
        self._admission.check(self.client)
        if self._certificate is not None and self.client not in self._certificate:
            shown = ", ".join(self._certificate) or "nobody"
            raise IdentityMismatch(
                f"the client goes by {self.client}, its certificate is for {shown}"
            )

    def _may_know_names(self) -> bool:
        """Whether the caller takes part, could, or is on the server's own machine."""
        return (
            self._engine.knows(self._session)
            or any(self._admission.admits(name) for name in self._certificate or ())
            or self._admission.proves(self._token)
            or Address.parse(self._peer).is_loopback
        )


def _names(context: Context) -> tuple[str, ...]:
    """Common and alternative names of the peer's certificate, the common one first."""
    shown = context.auth_context()
    values: list[bytes] = []
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        values.extend(shown.get(key, ()))
    return tuple(dict.fromkeys(value.decode("utf-8", "replace") for value in values))


async def _received(call: _Call, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """The requests of a stream; gRPC warns of one that was touched and not read."""
    async for raw in raws:
        yield call.received(raw)
