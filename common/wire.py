"""What both sides must write and read alike: names of the wire, and messages as domain objects.

Only the messages of the contract are used here, and no gRPC: who calls whom, and how, is the
business of `server.service` and `client.transport`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Final

from common import errors
from common.cells import CellTable
from common.downlink import StateStep
from common.errors import (
    Busy,
    PrismError,
    ProtocolError,
    RunMismatch,
    TransportError,
    WrongRound,
)
from common.fingerprint import Fingerprint
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from common.theory import MaskBits, figures

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Federation"].full_name
SESSION_KEY: Final = "prism-session"
"""Metadata of every call but `Join` and `GetStatus`: the session."""
TOKEN_KEY: Final = "prism-token"  # noqa: S105 - the key of the metadata
"""Metadata of `Join` and `GetStatus`, where clients prove their names by tokens: the token."""
ERROR_KEY: Final = "prism-error"
"""Trailing metadata of a refused call: the error's class, by its name in `common.errors`."""
ROUND_KEY: Final = "prism-round"
"""Trailing metadata of WrongRound: the round that is open, in decimal."""
RETRY_KEY: Final = "prism-retry-seconds"
"""Trailing metadata of Busy: when to come again, in decimal."""
CHUNK_BYTES: Final = 64 * 1024
"""Payload bytes in one message of a stream, at most."""
SEGMENT_KINDS: Final = {
    "mask": pb.SEGMENT_KIND_MASK,
    "score": pb.SEGMENT_KIND_SCORE,
    "weight": pb.SEGMENT_KIND_WEIGHT,
}

Metadata = Iterable[tuple[str, str | bytes]]

_NAMED: Final[dict[str, type[PrismError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, (ProtocolError, TransportError))
}
"""All that one side may have the other raise, whatever a peer sends."""
_BY_STATUS: Final[dict[str, type[PrismError]]] = {
    "UNAUTHENTICATED": errors.SessionUnknown,
    "PERMISSION_DENIED": errors.NotInCohort,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "FAILED_PRECONDITION": errors.RunMismatch,
    "RESOURCE_EXHAUSTED": errors.PayloadTooLarge,
    "INVALID_ARGUMENT": errors.PayloadError,
    "UNAVAILABLE": errors.TransportError,
    "DEADLINE_EXCEEDED": errors.TransportError,
}
"""What a status is taken for that comes without the name of an error."""
_LARGEST: Final = 2**64 - 1
DEFAULT_RETRY, LONGEST_RETRY = 5, 60
"""Seconds until a client comes again that was told to, if the server does not say, and at most."""


def chunks(payload: bytes) -> Iterator[bytes]:
    """The payload in pieces of one message each; none of an empty payload."""
    for start in range(0, len(payload), CHUNK_BYTES):
        yield payload[start : start + CHUNK_BYTES]


def session_of(metadata: Metadata | None) -> str:
    """The session that a call names; empty if it names none."""
    return _value(metadata, SESSION_KEY)


def token_of(metadata: Metadata | None) -> str:
    """The token that a call shows; empty if it shows none."""
    return _value(metadata, TOKEN_KEY)


def _value(metadata: Metadata | None, wanted: str) -> str:
    for key, value in metadata or ():
        if key == wanted:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""


def error_metadata(error: PrismError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that tells which error a status stands for; none for the server's own."""
    named = ((ERROR_KEY, type(error).__name__),) if type(error).__name__ in _NAMED else ()
    if isinstance(error, WrongRound):
        return (*named, (ROUND_KEY, str(error.current)))
    if isinstance(error, Busy):
        return (*named, (RETRY_KEY, str(round(error.seconds))))
    return named


def error_of(status: str, text: str, trailing: Metadata | None) -> PrismError:
    """The error that a refused call stands for; nothing of what the peer sends is trusted.

    Args:
        status: name of the grpc.StatusCode.
        text: details of the status.
        trailing: trailing metadata of the call.

    Returns:
        The named error if there is one of that name and status, else what the status is taken
        for; in any case a ProtocolError or a TransportError.
    """
    said = {key: value for key, value in trailing or () if isinstance(value, str)}
    kind = _NAMED.get(said.get(ERROR_KEY, ""))
    if kind is None or kind.status != status:
        known = status == WrongRound.status and ROUND_KEY in said
        kind = WrongRound if known else _BY_STATUS.get(status, ProtocolError)
    line = " ".join(text.split()) or "no details"
    if kind is WrongRound:
        current = _number(said.get(ROUND_KEY, ""))
        return RunMismatch(line) if current is None else WrongRound(line, current)
    if kind is Busy:
        seconds = _number(said.get(RETRY_KEY, ""))
        return Busy(line, DEFAULT_RETRY if seconds is None else min(seconds, LONGEST_RETRY))
    return kind(line)


def _number(text: str) -> int | None:
    """A number as trailing metadata has it; None if it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST))):
        return None
    return int(text) if int(text) <= _LARGEST else None


def fingerprint_to_pb(fingerprint: Fingerprint) -> pb.Fingerprint:
    """The message of a fingerprint."""
    return pb.Fingerprint(**asdict(fingerprint))


def fingerprint_from_pb(message: pb.Fingerprint) -> Fingerprint:
    """The fingerprint of a message."""
    return Fingerprint(
        message.run_id,
        message.seed,
        message.dimension,
        message.weights_digest,
        message.tables_digest,
    )


def step_to_pb(step: StateStep) -> pb.StateStep:
    """What a state's header says of one step; the payload follows it."""
    codec = pb.StateCodec.ValueType(step.codec)
    return pb.StateStep(codec=codec, round=step.round, payload_bytes=len(step.payload))


def step_from_pb(message: pb.StateStep, payload: bytes) -> StateStep:
    """The step of a state's header, with its payload."""
    return StateStep(message.codec, message.round, payload)


def report_to_pb(report: Report) -> pb.ClientReport:
    """The message of a report; NaN stands for no loss."""
    loss = math.nan if report.loss is None else report.loss
    return pb.ClientReport(
        loss=loss,
        classes=report.classes,
        cells=report.cells.content,
        **figures(report.bits),
    )


def report_from_pb(message: pb.ClientReport) -> Report:
    """The report of a message; a loss that is not finite is none.

    Raises:
        ProtocolError: bits that cannot be, or one figure of them without the other; classes
            that do not ascend; a table of cells that cannot be.
    """
    given = message.HasField("cross_entropy_bits"), message.HasField("kl_bits")
    if any(given) and not all(given):
        raise ProtocolError("cross_entropy_bits and kl_bits come together or not at all")
    if any(b <= a for a, b in pairwise(message.classes)):
        raise ProtocolError("classes are ascending labels")
    return Report(
        loss=message.loss if math.isfinite(message.loss) else None,
        bits=MaskBits(message.cross_entropy_bits, message.kl_bits) if all(given) else None,
        classes=tuple(message.classes),
        cells=CellTable.read(message.cells),
    )
