"""What the loop and the transport say to each other: the wire's messages without the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.fingerprint import Fingerprint
from common.theory import MaskBits


@dataclass(frozen=True)
class Security:
    """How the channel is secured.

    Attributes:
        ca: certificates that may have signed the server's; None is plain text.
        cert: this client's certificate, for mutual TLS.
        key: its key.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Joined:
    """What `Join` answered. `session` is empty when the run was only asked for."""

    config_toml: str
    fingerprint: Fingerprint
    session: str
    lease_seconds: float
    partition: tuple[int, int]


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


@dataclass(frozen=True)
class Report:
    """Figures that travel with an update.

    Attributes:
        examples: that were trained on.
        loss: mean over the steps; NaN stands for none.
        seconds: of training.
        bits: what theory says that the mask takes; None without a mask.
    """

    examples: int
    loss: float
    seconds: float
    bits: MaskBits | None = None
