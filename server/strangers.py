"""Who comes to the port and does not get as far as a call, and why: a line each for the operator.

gRPC tells nobody whose handshake failed but its own trace, on the process's standard error. So
that is where it is read: `watch_grpc` puts a pipe in the place of file descriptor 2, takes in
what gRPC traces of handshakes, and passes on all else. Its format is gRPC's own business; lines
that are not understood are passed on, and the tests say when that has come.
"""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

CALL_SECONDS: Final = 3.0
"""How long a connection may be there without a call before it is told of."""
QUIET_SECONDS: Final = 60.0
"""How long the same trouble of the same host is not told again."""
_MOST: Final = 4096
"""Connections, and troubles, that are remembered."""
_PIPE_BYTES: Final = 1 << 20

_TRACE: Final = re.compile(r"[IW]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] (.*)")
_REST_OF_TRACE: Final = re.compile(r"=== Source Location|src/core/| shutdown=|$")
_PEER: Final = re.compile(r"endpoint_peer_address=((?:ipv4|ipv6):[^,}\s]+)")
_FAILED: Final = re.compile(r"CallNextHandshakerLocked: error=(?!OK )(.*)")
_BEGINS: Final = re.compile(r"CallNextHandshakerLocked: error=OK .* index=1, ")

_SAID: Final = {
    "WRONG_VERSION_NUMBER|HTTP_REQUEST|UNKNOWN_PROTOCOL": (
        "speaks plain text, and this server TLS: its client needs --ca"
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "shows no certificate: its client needs --cert and --key"
    ),
    "certificate has expired": ("shows a certificate that has expired: its client needs a new one"),
    "not yet valid": "shows a certificate that is not valid yet: one of the two clocks is wrong",
    "signature failure|issuer|self.signed|unable to verify": (
        "shows a certificate that the authority of --client-ca did not sign"
    ),
    "purpose": "shows a certificate that is not made for clients",
    "ALERT_CERTIFICATE_EXPIRED": (
        "finds this server's certificate expired: renew it, or its clock is wrong"
    ),
    "ALERT_UNKNOWN_CA|_BAD_CERTIFICATE|CERTIFICATE_UNKNOWN|BAD_PACKET_LENGTH|BAD_DECRYPT": (
        "does not take this server's certificate: its --ca is of another authority, or it dials "
        "a name that the certificate is not for"
    ),
    "Socket closed": (
        "broke the TLS handshake off, as a client does whose --ca is of another authority"
    ),
}
"""What OpenSSL's reasons mean here, by a pattern of gRPC's text."""

log = logging.getLogger(__name__)


class Strangers:
    """What is told of connections that come to nothing.

    Attributes:
        secured: whether this server speaks TLS.
    """

    def __init__(self) -> None:
        self.secured = False
        self._silent: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._told: dict[tuple[str, str], float] = {}

    def arrived(self, peer: str, now: float) -> None:
        """A connection was made; peers as gRPC writes them."""
        if len(self._silent) < _MOST:
            self._silent[peer] = now

    def heard(self, peer: str) -> None:
        """A call came over a connection."""
        self._silent.pop(peer, None)
        _note(self._heard, _host(peer), time.monotonic())

    def failed(self, peer: str, reason: str, now: float) -> None:
        """A handshake failed."""
        self._silent.pop(peer, None)
        for pattern, words in _SAID.items():
            if re.search(pattern, reason):
                self._tell(peer, words, now)
                return
        words = " ".join(reason.partition(" === ")[0].split())[:200]
        self._tell(peer, f"did not get through the TLS handshake: {words}", now)

    def look(self, now: float) -> None:
        """Tell of connections over which no call has come."""
        for peer, since in list(self._silent.items()):
            if now - since < CALL_SECONDS:
                return
            self._silent.pop(peer, None)
            # Whoever makes calls over other connections only looked, or was quick to leave.
            if self._heard.get(_host(peer), -1.0) < since:
                self._tell(
                    peer,
                    "has made a connection and no call: it is no PRISM client"
                    + ("" if self.secured else ", or is set up for TLS, which this server is not"),
                    now,
                )

    def _tell(self, peer: str, words: str, now: float) -> None:
        key = _host(peer), words
        if now - self._told.get(key, -QUIET_SECONDS) >= QUIET_SECONDS:
            _note(self._told, key, now)
            log.warning("%s %s", peer_address(peer), words)


class Trace:
    """gRPC's trace of handshakes, line by line."""

    def __init__(self, strangers: Strangers) -> None:
        self._strangers = strangers
        self._reason = ""

    def take(self, line: str, now: float) -> bool:
        """Take in a line; whether it was one of the trace's."""
        found = _TRACE.match(line)
        if found is None and not _REST_OF_TRACE.match(line):
            return False
        peer = _PEER.search(line)
        if failed := _FAILED.search(line):
            self._reason = failed[1]
        if peer and self._reason:
            self._strangers.failed(peer[1], self._reason, now)
            self._reason = ""
        elif peer and _BEGINS.search(line):
            self._strangers.arrived(peer[1], now)
        return True


def watch_grpc() -> Strangers | None:
    """Read gRPC's trace from now on; None if a person has set it up to be read otherwise.

    Must be called before gRPC is imported, in a process that is all this server's.
    """
    if {"GRPC_VERBOSITY", "GRPC_TRACE"} & os.environ.keys():
        return None
    os.environ.update(GRPC_VERBOSITY="INFO", GRPC_TRACE="handshaker")
    strangers = Strangers()
    outer = os.dup(2)
    sys.stderr = os.fdopen(outer, "w", buffering=1, errors="backslashreplace")
    # A crash must not leave its traceback in a pipe that nobody reads any more.
    faulthandler.enable(sys.stderr)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # Whatever a burst of strangers writes, the server does not wait for it to be read.
    os.set_blocking(writing, False)
    os.dup2(writing, 2)
    os.close(writing)
    threading.Thread(target=_read, args=(reading, outer, strangers), daemon=True).start()
    return strangers


def peer_address(peer: str) -> str:
    """HOST:PORT of a peer as gRPC writes it, such as ipv6:%5B::1%5D:7070."""
    return unquote(peer.partition(":")[2]) or peer


def _read(reading: int, outer: int, strangers: Strangers) -> None:
    trace, rest = Trace(strangers), b""
    while data := os.read(reading, 65536):
        *lines, rest = (rest + data).split(b"\n")
        others = [line for line in lines if not trace.take(line.decode("utf-8", "replace"), _now())]
        _pass_on(outer, others)


def _pass_on(outer: int, lines: Iterable[bytes]) -> None:
    for line in lines:
        os.write(outer, line + b"\n")


def _now() -> float:
    return time.monotonic()


def _host(peer: str) -> str:
    return peer_address(peer).rpartition(":")[0]


def _note(notes: dict, key: object, now: float) -> None:  # type: ignore[type-arg]
    """Remember the newest, and no more than can be afforded."""
    notes.pop(key, None)
    notes[key] = now
    while len(notes) > _MOST:
        del notes[next(iter(notes))]
