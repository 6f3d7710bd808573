"""Newcomers' mistakes with addresses and certificates: each is told at once, on both sides.

The server is a process with a log, as a person runs it; the client is what `prism client` uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from support import background
from support_tls import HOUR, Authority

from client.messages import Security
from client.transport import Transport
from common.address import Address
from common.errors import ConfigError, IdentityMismatch, PrismError, TransportError
from server.tls import CertificateFiles

SECONDS = 5.0
DAY = timedelta(days=1)
RUN = "rounds = 1\n[data]\nclients = 2\n[model]\nwidth = 1\nlatent = 1\nimage_size = 16\n"


@dataclass
class Server:
    """A process of the server, and what it has written."""

    address: Address
    log: Path

    def says(self, words: str) -> str:
        """The line with these words, which must come soon."""
        until = time.monotonic() + SECONDS
        while True:
            for line in self.log.read_text().splitlines():
                if words in line:
                    return line
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def served(folder: Path, *options: str | Path) -> Iterator[Server]:
    folder.mkdir(parents=True)
    config, log, out = folder / "run.toml", folder / "log", folder / "out"
    config.write_text(RUN)
    words = ("-m", "server", config, "--bind", "127.0.0.1:0", "--out", out, *options)
    with background(log, *words) as process:
        while not (out / "address").exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield Server(Address.parse((out / "address").read_text()), log)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def own(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("ann")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("plain") / "run") as server:
        yield server


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Server]:
    cert, key = authority.issue("server")
    options = ("--tls-cert", cert, "--tls-key", key, "--client-ca", authority.ca)
    with served(tmp_path_factory.mktemp("mutual") / "run", *options) as server:
        yield server


def error(address: Address, *files: Path, name: str = "ann") -> PrismError:
    """What a client is told, soon and in one line."""
    began = time.monotonic()
    with pytest.raises(PrismError) as raised:
        transport = Transport(address, Security(*files))
        try:
            transport.join(name, bytes(16), None, wants_partition=False)
        finally:
            transport.close()
    assert time.monotonic() - began < SECONDS
    assert "\n" not in str(raised.value)
    return raised.value


def lasting(address: Address, *files: Path) -> str:
    """What ends the client at once, because trying again mends nothing."""
    told = error(address, *files)
    assert isinstance(told, ConfigError), told
    return str(told)


def healing(address: Address, *files: Path) -> str:
    """What is tried again, and said meanwhile."""
    told = error(address, *files)
    assert isinstance(told, TransportError), told
    return str(told)


def test_plain_text_to_tls(mutual: Server) -> None:
    assert "speaks TLS: give its authority's certificate with --ca" in lasting(mutual.address)
    line = mutual.says("speaks plain text, and this server TLS: its client needs --ca")
    assert re.search(r" 127\.0\.0\.1:\d+ speaks", line)


def test_tls_to_plain_text(plain: Server, authority: Authority) -> None:
    said = lasting(plain.address, authority.ca)
    assert "speaks plain text, without TLS" in said and "--tls-cert" in said
    line = plain.says("is set up for TLS, which this server is not")
    assert re.search(r" 127\.0\.0\.1:\d+ has made a connection and no call", line)


def test_another_authority(mutual: Server, other: Authority, own: tuple[Path, Path]) -> None:
    said = lasting(mutual.address, other.ca, *own)
    assert f"is not signed by the authority in {other.ca}" in said and "'test authority'" in said
    assert re.search(r" 127\.0\.0\.1:\d+ ", mutual.says("its --ca"))


def test_no_certificate_of_the_client(mutual: Server, authority: Authority) -> None:
    assert "asks clients for a certificate: give --cert" in lasting(mutual.address, authority.ca)
    line = mutual.says("shows no certificate: its client needs --cert and --key")
    assert re.search(r" 127\.0\.0\.1:\d+ shows", line)


def test_a_certificate_of_another_authority(
    mutual: Server, authority: Authority, other: Authority
) -> None:
    said = lasting(mutual.address, authority.ca, *other.issue("ann"))
    assert "does not take" in said and "'test authority' signed for 'ann'" in said
    line = mutual.says("that the authority of --client-ca did not sign")
    assert re.search(r" 127\.0\.0\.1:\d+ shows", line)


def test_a_name_that_the_certificate_does_not_have(
    mutual: Server, authority: Authority, own: tuple[Path, Path]
) -> None:
    told = error(mutual.address, authority.ca, *own, name="bob")
    assert isinstance(told, IdentityMismatch)
    assert "goes by bob, its certificate is for" in str(told)
    assert re.search(r"bob at 127\.0\.0\.1:\d+: PERMISSION_DENIED", mutual.says("Join of bob"))


def test_a_host_that_the_certificate_is_not_for(
    mutual: Server, authority: Authority, own: tuple[Path, Path]
) -> None:
    said = lasting(Address("localhost", mutual.address.port), authority.ca, *own)
    assert "is for 127.0.0.1, not for localhost" in said
    assert "prism certs server localhost" in said


def test_the_clients_certificate_has_expired(mutual: Server, authority: Authority) -> None:
    cert, key = authority.issue("old", since=-2 * DAY, until=-DAY)
    said = lasting(mutual.address, authority.ca, cert, key)
    assert f"{cert} has expired, on " in said and "renew it" in said

    async def by_another_program() -> None:
        async with authority.channel(str(mutual.address), cert, key) as channel:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(channel.channel_ready(), 1)

    asyncio.run(by_another_program())
    line = mutual.says("shows a certificate that has expired")
    assert re.search(r" 127\.0\.0\.1:\d+ shows", line)


def test_the_clients_clock_is_behind(mutual: Server, authority: Authority) -> None:
    cert, key = authority.issue("early", since=DAY, until=2 * DAY)
    said = lasting(mutual.address, authority.ca, cert, key)
    assert f"{cert} is not valid before" in said and "set the clock" in said


def test_a_key_that_everybody_can_read(mutual: Server, authority: Authority) -> None:
    cert, key = authority.issue("open")
    key.chmod(0o644)
    assert f"run `chmod 600 {key}`" in lasting(mutual.address, authority.ca, cert, key)


def test_a_key_of_another_certificate(
    mutual: Server, authority: Authority, own: tuple[Path, Path]
) -> None:
    _, key = authority.issue("bob")
    assert f"{key} is not the key of {own[0]}" in lasting(mutual.address, authority.ca, own[0], key)


def test_a_servers_certificate_as_authority(mutual: Server, authority: Authority) -> None:
    said = lasting(mutual.address, authority.folder / "server.pem")
    assert "not of the authority that signed it: test authority" in said


@pytest.mark.parametrize("since", [-2 * DAY, DAY])
def test_the_servers_certificate_is_out_of_time(
    authority: Authority, since: timedelta, tmp_path: Path
) -> None:
    cert, key = Authority(tmp_path).issue("server", since=since, until=since + HOUR)
    with pytest.raises(ConfigError, match=f"^{cert} (has expired, on|is not valid before) .*clock"):
        CertificateFiles.of(cert, key, None)
    # One that runs already, or is not ours: the client finds out.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with answering(b"", context) as address:
        said = lasting(address, tmp_path / "ca.pem")
        assert re.match(rf"the certificate of {address} (has expired|is not valid before)", said)


def test_a_web_server(authority: Authority) -> None:
    web = http.server.HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    try:
        address = Address("127.0.0.1", web.server_port)
        assert f"a web server answers at {address}" in lasting(address)
        assert f"a web server answers at {address}" in lasting(address, authority.ca)
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_another_tls_server(authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    with answering(b"", context) as address:
        assert "speaks TLS, but is no PRISM server" in lasting(address, authority.ca)


def test_another_program() -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as address:
        assert "is no PRISM server, it says 'SSH-2.0-OpenSSH" in lasting(address)


def test_another_grpc_server() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "is no PRISM server, or one of another version" in lasting(
            Address("127.0.0.1", port)
        )
    finally:
        server.stop(None).wait()


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1])
    assert f"nothing listens at {address}: is the server running" in healing(address)


def test_a_name_that_nobody_knows() -> None:
    assert "no address is known for nowhere.invalid" in healing(Address("nowhere.invalid", 7070))


def test_something_that_says_nothing(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1])
        assert "takes connections and says nothing" in healing(address)
        assert "takes connections and says nothing" in healing(address, authority.ca)


def test_something_that_closes_at_once() -> None:
    """Such as a published port of a container whose server is not up yet."""
    with answering(b"") as address:
        assert "takes connections and closes them" in healing(address)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextlib.contextmanager
def answering(words: bytes, context: ssl.SSLContext | None = None) -> Iterator[Address]:
    """A server that says the same to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    if context is None:
                        connection.sendall(words)
                        connection.recv(100)
                    else:
                        with context.wrap_socket(connection, server_side=True) as secured:
                            secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
