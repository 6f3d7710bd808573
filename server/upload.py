"""One update on its way in: what has come of it, and whether it is what its header declared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from common.errors import PayloadError
from common.report import Report
from common.timestamps import utc_now
from server.events import Ticket
from server.recovered import StoredUpdate


class Upload:
    """The payload of one claimed update, as it comes; made by `Intake.upload`.

    Args:
        ticket: of the claim.
        session: that the claim was made in.
        sizes: bytes of each segment's payload, as the header declares them.
        check: raises what makes an upload not worth reading on; see `Rounds.check`.
    """

    def __init__(
        self,
        ticket: Ticket,
        session: str,
        sizes: tuple[int, ...],
        check: Callable[[Ticket], None],
    ) -> None:
        self.ticket = ticket
        self.session = session
        self.sizes = sizes
        self._check = check
        self._total = sum(sizes)
        self._payload = bytearray()

    def add(self, data: bytes) -> None:
        """Take in the next bytes of the payload.

        Raises:
            WrongRound, AlreadyExists: as in `Rounds.check`.
            PayloadError: these are more than the header declares.
        """
        self._check(self.ticket)
        if len(self._payload) + len(data) > self._total:
            raise PayloadError(f"more than the {self._total} bytes that the header declares")
        self._payload += data

    def whole(self, report: Report, message_bytes: int, seconds: float) -> StoredUpdate:
        """The update, once all of it has come; then this holds its payload no longer.

        Args:
            report: what the client says about it.
            message_bytes: of the messages that it came in.
            seconds: since its attempt was opened.

        Raises:
            WrongRound, AlreadyExists: as in `Rounds.check`.
            PayloadError: it is not what the header declares.
        """
        self._check(self.ticket)
        if len(self._payload) != self._total:
            raise PayloadError(
                f"{len(self._payload)} bytes of the {self._total} that the header declares"
            )
        if hashlib.sha256(self._payload).digest() != self.ticket.digest:
            raise PayloadError("the payload does not match its digest: damaged on the way")
        payload, self._payload = bytes(self._payload), bytearray()
        name, digest = self.ticket.name, self.ticket.digest
        came = message_bytes, utc_now(), round(seconds, 3)
        return StoredUpdate(name, digest, self.sizes, report, payload, *came)

    def drop(self) -> None:
        """Let go of what has come, whoever still holds this upload."""
        self._payload = bytearray()
