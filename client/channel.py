"""A channel to a server: its address, how it is secured, and what a failed call means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import grpc

from client.messages import Security
from common.address import Address
from common.errors import ConfigError, TransportError
from common.pem import CLIENT, read_authorities, read_pair
from common.wire import SERVICE, error_of

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


def open_channel(address: Address, security: Security) -> grpc.Channel:
    """A channel, which connects when it is first used.

    Raises:
        ConfigError: the certificates cannot be used.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(_RETRY)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Reconnecting is paced by who calls, and can say so.
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", 4 * 1024 * 1024),
        # What was meant to stay on this machine must not go through somebody's proxy.
        ("grpc.enable_http_proxy", 0 if address.is_loopback else 1),
    ]
    if security.ca is None:
        if security.cert or security.key:
            raise ConfigError("--cert and --key need --ca")
        return grpc.insecure_channel(str(address), options)
    return grpc.secure_channel(str(address), _credentials(security), options)


@contextmanager
def mapped_errors(address: Address) -> Iterator[None]:
    """Turn a failed call into the error that the server raised, or that its status stands for."""
    try:
        yield
    except grpc.RpcError as error:
        # Every RpcError that a call raises is that call too; the stubs do not say so.
        call = cast(grpc.Call, error)
        status = call.code().name
        if status == "CANCELLED":
            raise TransportError("the call was cancelled") from error
        meant = error_of(status, call.details() or "", call.trailing_metadata())
        if isinstance(meant, TransportError):
            meant = TransportError(f"no answer from {address}: {meant}")
        raise meant from error


def _credentials(security: Security) -> grpc.ChannelCredentials:
    ca = read_authorities(security.ca) if security.ca else None
    if security.cert is None and security.key is None:
        return grpc.ssl_channel_credentials(ca)
    if security.cert is None or security.key is None:
        raise ConfigError("mutual TLS needs both --cert and --key")
    chain, key = read_pair(security.cert, security.key, CLIENT)
    return grpc.ssl_channel_credentials(ca, key, chain)
