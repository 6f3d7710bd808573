"""The connection to one server: how it is secured, and what became of a call that failed."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator
from typing import Final, cast

import grpc

from client.diagnosis import Finding, diagnose
from client.messages import Security
from common.address import Address
from common.errors import ConfigError, PrismError, TransportError
from common.pem import CLIENT, read_authorities, read_pair
from common.rpc.prism.v1.federation_pb2_grpc import FederationStub
from common.wire import ERROR_KEY, SERVICE, error_of

CALL_SECONDS: Final = 20.0
FIRST_SECONDS: Final = 2.5
"""How long the very first call may take, before a look whether it is the server's fault."""
LOOK_SECONDS: Final = 10.0
"""How long what was found at the address stands."""

_RETRY: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": SERVICE, "method": method}
                for method in ("Join", "Heartbeat", "Leave", "GetStatus")
            ],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

log = logging.getLogger("prism.client")


class Channel:
    """One channel, made anew when a certificate or key on the disk has changed.

    Attributes:
        grpc: gRPC's own; ask for it at every call.
        stub: the server's calls; likewise.

    Raises:
        ConfigError: a certificate or key cannot be used.
    """

    def __init__(self, address: Address, security: Security) -> None:
        self._address = address
        self._security = security
        self._answered = False
        self._called = False
        self._looked = -math.inf
        self._finding: Finding | None = None
        self._open()

    def call_seconds(self) -> float:
        """How long a small call may take."""
        first, self._called = not self._called, True
        return FIRST_SECONDS if first else CALL_SECONDS

    @contextlib.contextmanager
    def errors(self, *, looking: bool = True) -> Iterator[None]:
        """Turns a failed call into the error that the server raised, or that explains it.

        Args:
            looking: whether to find out why, if the server did not answer.

        Raises:
            TransportError: there was no answer; it may be otherwise later.
            ConfigError: there was none, and there will be none as things are.
            PrismError: what the server raised.
        """
        try:
            yield
        except grpc.RpcError as error:
            # Every RpcError that a call raises is that call too; the stubs do not say so.
            raise self._meant(cast(grpc.Call, error), looking) from error
        else:
            self._answered = True

    def close(self) -> None:
        """Close it; calls in flight are cancelled."""
        self.grpc.close()

    def _open(self) -> None:
        options = [
            ("grpc.service_config", json.dumps(_RETRY)),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Reconnecting is paced by the loop, which can say so.
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.max_receive_message_length", 4 * 1024 * 1024),
            # What was meant to stay on this machine must not go through somebody's proxy.
            ("grpc.enable_http_proxy", 0 if self._address.is_loopback else 1),
        ]
        self._stamps = self._security.stamps()
        credentials = _credentials(self._security)
        if credentials is None:
            self.grpc = grpc.insecure_channel(str(self._address), options)
        else:
            self.grpc = grpc.secure_channel(str(self._address), credentials, options)
        self.stub = FederationStub(self.grpc)

    def _meant(self, call: grpc.Call, looking: bool) -> PrismError:
        status, trailing = call.code().name, call.trailing_metadata() or ()
        if status == "CANCELLED":
            return TransportError("the call was cancelled")
        if status == "UNIMPLEMENTED":
            # What stands in for a server that is starting anew may say so for a while.
            kind = TransportError if self._answered else ConfigError
            return kind(
                f"{self._address} is no PRISM server, or one of another version: is this its port?"
            )
        meant = error_of(status, call.details() or "", trailing)
        if any(key == ERROR_KEY for key, _ in trailing):
            self._answered = True
        elif isinstance(meant, TransportError) and looking:
            return self._unreached(meant)
        if isinstance(meant, TransportError):
            return TransportError(f"no answer from {self._address}: {meant}")
        return meant

    def _unreached(self, meant: TransportError) -> PrismError:
        """What the look at the address explains, or the status as it is."""
        self._read_again()
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._finding = diagnose(self._address, self._security)
            self._looked = time.monotonic()
        if self._finding is None:
            return TransportError(f"no answer from {self._address}: {meant}")
        # What worked once, with these very options, may work again.
        lasting = self._finding.lasting and not self._answered
        return (ConfigError if lasting else TransportError)(self._finding.line)

    def _read_again(self) -> None:
        """Make the channel anew if its files are others now."""
        if self._security.stamps() == self._stamps:
            return
        old = self.grpc
        try:
            self._open()
        except ConfigError as error:
            log.warning("the certificates have changed and cannot be used: %s", error)
            return
        log.info("the certificates have changed and were read again")
        old.close()


def _credentials(security: Security) -> grpc.ChannelCredentials | None:
    """TLS from files, or None for plain text."""
    if security.ca is None:
        if security.cert or security.key:
            raise ConfigError("--cert and --key need --ca")
        return None
    ca = read_authorities(security.ca)
    if security.cert is None and security.key is None:
        return grpc.ssl_channel_credentials(ca)
    if security.cert is None or security.key is None:
        raise ConfigError("mutual TLS needs both --cert and --key")
    chain, key = read_pair(security.cert, security.key, CLIENT)
    return grpc.ssl_channel_credentials(ca, key, chain)
