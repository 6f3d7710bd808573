"""HOST:PORT as people write it, and whether it stays on this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from common.errors import ConfigError

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_EXAMPLE: Final = "such as 127.0.0.1:7070"


@dataclass(frozen=True)
class Address:
    """A host and a port; `str` gives what is dialled or listened on.

    Attributes:
        host: a name in lower case, or an IP address without brackets.
        port: 0 to 65535; 0 takes a free one when listening.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, listening: bool = False) -> Address:
        """Read HOST:PORT; an IPv6 host stands in brackets.

        Args:
            text: what a person wrote.
            listening: whether it is to be listened on; port 0 is for that alone, and so are
                addresses that stand for all of a machine.

        Raises:
            ConfigError: it is something else; the line says what to write.
        """
        written = text.strip()
        if "://" in written:
            rest = written.partition("://")[2]
            raise ConfigError(
                f"{text!r} is a URL: write HOST:PORT alone, {_suggested(rest) or _EXAMPLE}"
            )
        host, port = _split(text, written)
        address = cls(_host(text, host), _port(text, port))
        if not listening and address.port == 0:
            raise ConfigError(f"{text!r}: nobody listens on port 0; write the server's port")
        if not listening and address.is_any:
            raise ConfigError(
                f"{text!r} can be listened on, not reached: write the server's own name or address"
            )
        return address

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached without leaving this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_any(self) -> bool:
        """Whether it stands for all addresses of a machine."""
        return _is_ip(self.host, 4, 6) and ipaddress.ip_address(self.host).is_unspecified

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def check_security(address: Address, *, secured: bool, insecure: bool) -> None:
    """Refuse plain text off this machine unless a person asked for it.

    Raises:
        ConfigError: it would be plain text over a network.
    """
    if not secured and not insecure and not address.is_loopback:
        raise ConfigError(
            f"{address} is off this machine and TLS is not set up: "
            "give certificates, or --insecure to send everything in plain text"
        )


def check_listen(address: Address) -> None:
    """Take a port and give it back, to learn whether it can be had.

    Raises:
        ConfigError: the host is not this machine's, or the port is in use.
    """
    host, port = address.host, address.port
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


def _split(text: str, written: str) -> tuple[str, str]:
    """Host, without brackets, and port, as written."""
    if written.startswith("["):
        host, bracket, rest = written[1:].partition("]")
        if not bracket or not _is_ip(host, 6):
            raise ConfigError(f"{text!r}: within brackets stands an IPv6 address, as in [::1]:7070")
        if not rest.startswith(":"):
            raise ConfigError(f"{text!r} has no port: write [{host}]:PORT, such as [{host}]:7070")
        return host, rest[1:]
    host, colon, port = written.rpartition(":")
    if ":" in host:
        if _is_ip(host, 6) or _is_ip(written, 6):
            meant = f"[{host}]:{port}" if _is_ip(host, 6) else f"[{written}]:7070"
            raise ConfigError(f"{text!r}: an IPv6 address stands in brackets: write {meant}")
        raise ConfigError(f"{text!r} is not HOST:PORT, {_EXAMPLE}")
    if not colon:
        if not written or written.isdigit():
            raise ConfigError(f"{text!r} is not HOST:PORT, {_EXAMPLE}")
        raise ConfigError(f"{text!r} has no port: write HOST:PORT, such as {written}:7070")
    if not host or host == "*":
        raise ConfigError(
            f"{text!r} has no host: write HOST:PORT; 127.0.0.1:{port} is this machine alone, "
            f"0.0.0.0:{port} listens for others too"
        )
    return host, port


def _host(text: str, host: str) -> str:
    if ":" in host:
        return ipaddress.IPv6Address(host).compressed
    # A dot at the end only says that the name is whole.
    name = host.removesuffix(".").lower()
    if not _HOST_NAME.fullmatch(name):
        raise ConfigError(f"{text!r}: {host!r} is no host name: letters, digits, dots and hyphens")
    if name.replace(".", "").isdigit() and not _is_ip(name, 4):
        raise ConfigError(f"{text!r}: {host!r} is no IPv4 address, which has four numbers to 255")
    return name


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit()):
        raise ConfigError(f"{text!r}: {port!r} is no port: write HOST:PORT, {_EXAMPLE}")
    if len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"{text!r}: ports go from 1 to 65535")
    return int(port)


def _is_ip(text: str, *versions: int) -> bool:
    try:
        return ipaddress.ip_address(text).version in versions
    except ValueError:
        return False


def _suggested(rest: str) -> str:
    """HOST:PORT out of the rest of a URL; empty if it has none."""
    try:
        return f"as in {Address.parse(rest.partition('/')[0])}"
    except ConfigError:
        return ""
