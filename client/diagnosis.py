"""Why a server cannot be reached, in one line that says what to do.

gRPC says "Socket closed" for a dozen different mistakes. So when a call fails, the address is
looked at with plain sockets: whether somebody listens, what it speaks, whose certificate it shows,
and whether it takes this client's.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509

from client.messages import Security
from common.address import Address
from common.errors import ConfigError
from common.pem import (
    MALFORMED,
    check_validity,
    common_name,
    host_names,
    issuer_name,
    load_certificates,
    read_through,
)

STEP_SECONDS: Final = 1.5
"""How long each step of looking may take."""
_PAUSE_SECONDS: Final = 0.3
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What an HTTP/2 client says first, with settings that change nothing."""
_WRONG_HOST: Final = (62, 64)
"""OpenSSL's codes of a certificate for another name, and for another address."""
_OUT_OF_TIME: Final = (9, 10)
"""Of one that is not valid yet, and of one that has expired."""
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")

_Answer: TypeAlias = bytes | None
"""The first bytes that came; empty if the other side closed, None if it said nothing."""


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        line: what it is and what to do.
        lasting: whether trying again cannot mend it, if it never worked.
    """

    line: str
    lasting: bool


def diagnose(address: Address, security: Security) -> Finding | None:
    """Look what is at an address; None if nothing is wrong that can be seen from here."""
    if not address.is_loopback and any(os.environ.get(name) for name in _PROXIES):
        # What is beyond a proxy is not seen by going around it.
        return None
    found = _look(address, security)
    if found is None or not found.lasting:
        return found
    # A server that stops in the middle of a handshake looks like one that refuses it.
    time.sleep(_PAUSE_SECONDS)
    return found if _look(address, security) == found else None


def _look(address: Address, security: Security) -> Finding | None:
    try:
        return _look_plain(address) if security.ca is None else _look_secured(address, security)
    except ssl.SSLError as error:
        reason = (error.reason or "no reason given").lower().replace("_", " ")
        return Finding(f"{address} breaks the TLS handshake off: {reason}", lasting=False)
    except socket.gaierror:
        return Finding(
            f"no address is known for {address.host}: is the name right, and can this machine "
            "look it up?",
            lasting=False,
        )
    except ConnectionRefusedError:
        return Finding(
            f"nothing listens at {address}: is the server running, and is this its port?",
            lasting=False,
        )
    except TimeoutError:
        return Finding(
            f"{address} does not answer: is the address right, and does a firewall let it through?",
            lasting=False,
        )
    except FileNotFoundError:
        gone = [str(f) for f in (security.ca, security.cert, security.key) if f and not f.exists()]
        return Finding(f"{', '.join(gone) or address} is gone: put it back", lasting=False)
    except OSError as error:
        return Finding(f"{address} cannot be reached: {error.strerror or error}", lasting=False)


def _look_plain(address: Address) -> Finding | None:
    """Where plain text is meant to be spoken."""
    with _connect(address) as connection:
        answer = _answer(connection)
    if _is_http2(answer):
        return None
    if answer is not None and _speaks_tls(address):
        return Finding(
            f"{address} speaks TLS: give its authority's certificate with --ca", lasting=True
        )
    return _not_ours(address, answer)


def _look_secured(address: Address, security: Security) -> Finding | None:
    """Where TLS is meant to be spoken."""
    context = ssl.create_default_context(cafile=security.ca)
    if security.cert is not None:
        context.load_cert_chain(security.cert, security.key)
    try:
        secured = _handshake(address, context)
    except ssl.SSLCertVerificationError as error:
        return _not_trusted(address, security, error.verify_code)
    except TimeoutError:
        _connect(address).close()
        return _not_ours(address, None)
    except OSError:
        with _connect(address) as connection:
            answer = _answer(connection)
        if _is_http2(answer):
            return Finding(
                f"{address} speaks plain text, without TLS: have the server started with "
                "--tls-cert and --tls-key, or leave --ca out and say --insecure",
                lasting=True,
            )
        if answer:
            return _not_ours(address, answer)
        raise
    with secured:
        if secured.selected_alpn_protocol() != "h2":
            return Finding(
                f"{address} speaks TLS, but is no PRISM server: is this its port?", lasting=True
            )
        try:
            answer = _answer(secured)
        except ssl.SSLError:
            # An alert: with TLS 1.3 this is how a client learns that it was refused.
            answer = b""
    if _is_http2(answer):
        return None
    if answer == b"":
        return _not_taken(address, security.cert)
    return _not_ours(address, answer)


def _not_trusted(address: Address, security: Security, code: int) -> Finding:
    """The server's certificate is not one that this client can take."""
    shown = _shown(address)
    if code in _OUT_OF_TIME:
        try:
            check_validity(f"the certificate of {address}", shown)
        except ConfigError as error:
            return Finding(str(error), lasting=True)
    if code in _WRONG_HOST:
        names = ", ".join(host_names(shown)) or "no host"
        return Finding(
            f"the certificate of {address} is for {names}, not for {address.host}: connect to one "
            f"of these, or have one made with `prism certs server {address.host}`",
            lasting=True,
        )
    return Finding(
        f"the certificate of {address}, signed by {_quoted(issuer_name(shown))}, is not signed by "
        f"the authority in {security.ca}: get that server's ca.pem",
        lasting=True,
    )


def _not_taken(address: Address, cert: Path | None) -> Finding:
    """The server ended the connection when it had seen this client's certificate, or none."""
    if cert is None:
        return Finding(
            f"{address} asks clients for a certificate: give --cert and --key, signed by the "
            "server's authority (`prism certs client NAME`)",
            lasting=True,
        )
    _, (own, *_) = load_certificates(cert)
    return Finding(
        f"{address} does not take {cert}, which {_quoted(issuer_name(own))} signed for "
        f"{_quoted(common_name(own))}: get one from the authority that the server names with "
        "--client-ca",
        lasting=True,
    )


def _not_ours(address: Address, answer: _Answer) -> Finding:
    """Something listens that does not speak as a PRISM server does."""
    if answer is None:
        return Finding(
            f"{address} takes connections and says nothing: is it a PRISM server, and not "
            "overloaded or suspended?",
            lasting=False,
        )
    if not answer:
        # Such as a forwarded port whose server is not up yet.
        return Finding(
            f"{address} takes connections and closes them: is the server up, and its port right?",
            lasting=False,
        )
    if answer.startswith((b"HTTP/", b"<")):
        return Finding(
            f"a web server answers at {address}, no PRISM server: write the address that "
            "`prism server` listens on",
            lasting=True,
        )
    said = _quoted(answer[:20].decode("ascii", "replace"))
    return Finding(f"{address} is no PRISM server, it says {said}: is this its port?", lasting=True)


def _connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), STEP_SECONDS)


def _handshake(address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    context.set_alpn_protocols(["h2"])
    connection = _connect(address)
    try:
        return context.wrap_socket(connection, server_hostname=address.host)
    except BaseException:
        connection.close()
        raise


def _unverified() -> ssl.SSLContext:
    """For looking at a certificate alone: nothing is sent over what this makes."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _speaks_tls(address: Address) -> bool:
    try:
        _handshake(address, _unverified()).close()
    except OSError:
        return False
    return True


def _shown(address: Address) -> x509.Certificate:
    with _handshake(address, _unverified()) as connection:
        content = connection.getpeercert(binary_form=True)
    if content is None:
        raise OSError("no certificate is shown")
    try:
        return read_through(x509.load_der_x509_certificate(content))
    except MALFORMED as error:
        raise OSError("the certificate that is shown cannot be read") from error


def _answer(connection: socket.socket) -> _Answer:
    """What the other side says to the first words of HTTP/2."""
    try:
        connection.sendall(_PREFACE)
        return connection.recv(64)
    except TimeoutError:
        return None
    except ssl.SSLError:
        raise
    except OSError:
        return b""


def _is_http2(answer: _Answer) -> bool:
    return answer is not None and len(answer) >= 9 and answer[3:9] == bytes((4, 0, 0, 0, 0, 0))


def _quoted(text: str) -> str:
    """Another's words within a line."""
    return repr(text)
