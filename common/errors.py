"""Every error that this project raises on purpose, each with its gRPC status.

    PrismError                     INTERNAL
    |-- ConfigError                INVALID_ARGUMENT     the run's config is wrong
    |-- DataError                  INVALID_ARGUMENT     images or partition cannot be used
    |-- ModelFileError             DATA_LOSS            a model file is corrupt
    |-- StorageError               DATA_LOSS            saved state is corrupt
    |-- PrivacyError               FAILED_PRECONDITION  a privacy promise could not be kept
    |-- TransportError             UNAVAILABLE          the other side cannot be reached
    `-- ProtocolError              INVALID_ARGUMENT     the peer broke the contract
        |-- PayloadError           INVALID_ARGUMENT     wrong length, digest, codec or content
        |-- PayloadTooLarge        RESOURCE_EXHAUSTED
        |-- Busy                   RESOURCE_EXHAUSTED   says when to come again
        |-- SessionUnknown         UNAUTHENTICATED      join again
        |-- NotInCohort            PERMISSION_DENIED
        |-- IdentityMismatch       PERMISSION_DENIED    the certificate is for another name
        |-- NotAdmitted            PERMISSION_DENIED    not on the server's list of clients
        |-- AlreadyExists          ALREADY_EXISTS       name or round key is taken
        |-- RunMismatch            FAILED_PRECONDITION  other protocol, seed, d, weights or run
        `-- WrongRound             FAILED_PRECONDITION  carries the round that is open

The message of each is one line that says what is wrong and what to do. `status` is the
name of a grpc.StatusCode: this package does not import grpc.
"""

from typing import Final

_LONGEST: Final = 800
"""Characters of a line; of a longer one, which quotes what it was given, the middle is left out."""


class PrismError(Exception):
    """The root. Caught at the edges: one line and exit code 1, or a gRPC status.

    Args:
        lines: what is wrong; of a config with several mistakes, one for each.
    """

    status = "INTERNAL"

    def __init__(self, *lines: str) -> None:
        # Some of it may be a peer's or a file's, and what controls a terminal must not reach one.
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class ConfigError(PrismError):
    """A run config is missing, malformed or inconsistent."""

    status = "INVALID_ARGUMENT"


class DataError(PrismError):
    """Images, labels or a partition cannot be used as asked."""

    status = "INVALID_ARGUMENT"


class ModelFileError(PrismError):
    """A model file is corrupt, truncated or of another version."""

    status = "DATA_LOSS"


class StorageError(PrismError):
    """A journal, checkpoint or client state cannot be read back."""

    status = "DATA_LOSS"


class PrivacyError(PrismError):
    """A privacy promise cannot be kept with these settings; nothing was released."""

    status = "FAILED_PRECONDITION"


class TransportError(PrismError):
    """The other side cannot be reached, or the connection cannot be secured."""

    status = "UNAVAILABLE"


class ProtocolError(PrismError):
    """The peer sent something that the contract does not allow."""

    status = "INVALID_ARGUMENT"


class PayloadError(ProtocolError):
    """A payload has the wrong length, digest, codec or content."""

    status = "INVALID_ARGUMENT"


class PayloadTooLarge(ProtocolError):  # noqa: N818 - reads as what happened
    """More bytes than this run can ever need."""

    status = "RESOURCE_EXHAUSTED"


class Busy(ProtocolError):  # noqa: N818
    """The other side has its hands full.

    Attributes:
        seconds: when to come again.
    """

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class SessionUnknown(ProtocolError):  # noqa: N818
    """The session has ended or belongs to an earlier server; join again."""

    status = "UNAUTHENTICATED"


class NotInCohort(ProtocolError):  # noqa: N818
    """This client was not asked to train in this round."""

    status = "PERMISSION_DENIED"


class IdentityMismatch(ProtocolError):  # noqa: N818
    """The certificate that the client shows is for another name than it goes by."""

    status = "PERMISSION_DENIED"


class NotAdmitted(ProtocolError):  # noqa: N818
    """The server's operator does not let this name take part, or its token does not prove it."""

    status = "PERMISSION_DENIED"


class AlreadyExists(ProtocolError):  # noqa: N818
    """The name, or the (round, client) key, is already taken by something else."""

    status = "ALREADY_EXISTS"


class RunMismatch(ProtocolError):  # noqa: N818
    """The peers do not agree on protocol, run, seed, dimension, weights or tables."""

    status = "FAILED_PRECONDITION"


class WrongRound(ProtocolError):  # noqa: N818
    """Another round is open.

    Attributes:
        current: the round that is open.
    """

    status = "FAILED_PRECONDITION"

    def __init__(self, message: str, current: int) -> None:
        super().__init__(message)
        self.current = current


def printable(text: str) -> str:
    """A line that a terminal can show, of whatever length and content its parts were."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
