"""What the loop and the transport say to each other: the wire's messages without the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.files import stamp
from common.fingerprint import Fingerprint
from common.pem import common_name, load_certificates
from common.tokens import Token


@dataclass(frozen=True)
class Security:
    """How the channel is secured.

    Attributes:
        ca: certificates that may have signed the server's; None is plain text.
        cert: this client's certificate, for mutual TLS.
        key: its key.
        token_file: what proves its name without a certificate.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    def stamps(self) -> tuple[tuple[int, ...] | None, ...]:
        """What changes when one of the files does."""
        return tuple(stamp(path) for path in (self.ca, self.cert, self.key) if path)

    def proven_name(self) -> str | None:
        """The client that the token or the certificate is for, if there is one.

        Raises:
            ConfigError: the file cannot be used.
        """
        if self.token_file is not None:
            return Token.read(self.token_file).name
        if self.cert is not None:
            return common_name(load_certificates(self.cert)[1][0]) or None
        return None


@dataclass(frozen=True)
class Joined:
    """What `Join` answered.

    Attributes:
        config_toml: the run's config.
        fingerprint: the server's.
        lease_seconds: how long the server waits for a silent client.
        partition: index of the data partition handed out, of how many.
        clock: the server's, in seconds since 1970.
    """

    config_toml: str
    fingerprint: Fingerprint
    lease_seconds: float
    partition: tuple[int, int]
    clock: float


@dataclass(frozen=True)
class Assignment:
    """Train on the state of `round` and submit."""

    round: int
    state_digest: bytes
    rank: int
    cohort_size: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet, and why."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """The run is over after `round` rounds."""

    round: int
