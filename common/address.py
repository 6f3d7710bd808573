"""HOST:PORT, and whether it stays on this machine."""

from __future__ import annotations

import ipaddress
import socket

from common.errors import ConfigError


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in brackets.

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:7070")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is reached without leaving this machine."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_security(address: str, *, secured: bool, insecure: bool) -> None:
    """Refuse plain text off this machine unless a person asked for it.

    Raises:
        ConfigError: it would be plain text over a network.
    """
    if not secured and not insecure and not is_loopback(address):
        raise ConfigError(
            f"{address} is off this machine and TLS is not set up: "
            "give certificates, or --insecure to send everything in plain text"
        )


def check_listen(address: str) -> None:
    """Take a port and give it back, to learn whether it can be had.

    Raises:
        ConfigError: the host is not this machine's, or the port is in use.
    """
    host, port = split_address(address)
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # As gRPC's: connections that were closed a moment ago are no obstacle.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: not this machine's, or in use ({error.strerror})"
        ) from error
