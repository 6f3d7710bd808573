"""Addresses and certificates: who may listen where, and who may speak as whom."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support import RawClient, refused, running, tiny_config
from support_tls import Authority

from client.messages import Security
from client.transport import Transport
from common.address import Address
from common.errors import ConfigError, TransportError
from server.app import serve
from server.tls import CertificateFiles

CODE = grpc.StatusCode


def start_error(out: Path, bind: str = "127.0.0.1:0", **options: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        asyncio.run(asyncio.wait_for(serve(tiny_config(), bind, out, **options), 30))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_addresses_are_refused(tmp_path: Path) -> None:
    assert "HOST:PORT" in start_error(tmp_path, "127.0.0.1")
    assert "--insecure" in start_error(tmp_path, "0.0.0.0:0")
    assert "cannot listen" in start_error(tmp_path, "192.0.2.1:0", insecure=True)
    assert not (tmp_path / "address").exists()

    async def taken() -> None:
        async with running(tiny_config(), tmp_path / "a") as address:
            with pytest.raises(ConfigError, match="in use"):
                await serve(tiny_config(), address, tmp_path / "b")
            assert (tmp_path / "a" / "address").read_text() == f"{address}\n"
            assert not (tmp_path / "b").exists()

    asyncio.run(taken())


def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    config = tiny_config()

    async def main() -> None:
        # TLS is what makes an address off loopback acceptable.
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(
                config,
                "0.0.0.0:0",
                tmp_path / "run",
                tls_cert=cert,
                tls_key=key,
                ready=port.set_result,
            )
        )
        address = f"127.0.0.1:{await port}"
        async with authority.channel(address) as channel:
            await RawClient(config, channel, "ann").join()
        async with grpc.aio.insecure_channel(address) as channel:
            await refused(RawClient(config, channel, "ann").join(), CODE.UNAVAILABLE)
        server.cancel()
        await asyncio.wait([server])

    asyncio.run(main())


def test_mutual_tls_binds_names_to_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    options = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca}
    config = tiny_config()

    async def main() -> None:
        async with running(config, tmp_path / "run", **options) as address:
            async with authority.channel(address) as channel:
                await refused(RawClient(config, channel, "ann").join(), CODE.UNAVAILABLE)
            async with (
                authority.channel(address, *authority.issue("ann", "other")) as hers,
                authority.channel(address, *authority.issue("bob")) as his,
            ):
                ann, other = RawClient(config, hers, "ann"), RawClient(config, hers, "other")
                bob, posing = RawClient(config, his, "bob"), RawClient(config, his, "ann")
                for client in (ann, other, bob):
                    await client.join()
                error = await refused(posing.join(), CODE.PERMISSION_DENIED)
                assert "its certificate is for" in (error.details() or "")
                await refused(posing.join(fingerprint=None), CODE.PERMISSION_DENIED)
                # A session is of no use to the bearer of another certificate.
                posing.session = ann.session
                await refused(posing.await_round(0), CODE.PERMISSION_DENIED)
                await refused(posing.leave(), CODE.PERMISSION_DENIED)
                assert (await ann.await_round(0)).HasField("assignment")

    asyncio.run(main())


def test_unusable_certificates_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    _, other = authority.issue("other")
    missing = tmp_path / "missing.pem"
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")
    out = tmp_path / "run"
    assert "belong together" in start_error(out, tls_cert=cert)
    assert "belong together" in start_error(out, tls_key=key)
    assert "--client-ca needs" in start_error(out, client_ca=authority.ca)
    assert "missing.pem: No such file" in start_error(out, tls_cert=missing, tls_key=key)
    assert "text.pem is not a PEM certificate" in start_error(out, tls_cert=text, tls_key=key)
    assert "text.pem is not a PEM private key" in start_error(out, tls_cert=cert, tls_key=text)
    assert "is not the key of" in start_error(out, tls_cert=cert, tls_key=other)
    error = start_error(out, tls_cert=cert, tls_key=key, client_ca=text)
    assert "text.pem is not a PEM certificate" in error
    assert not out.exists()


def test_a_client_says_at_once_what_is_wrong_with_its_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("ann")
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")

    def error(**files: Path) -> str:
        with pytest.raises(ConfigError) as raised:
            Transport(Address("127.0.0.1", 1), Security(**files))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "text.pem is not a PEM certificate" in error(ca=text)
    assert "missing.pem: No such file" in error(ca=tmp_path / "missing.pem")
    assert "--cert and --key need --ca" in error(cert=cert, key=key)
    assert "needs both --cert and --key" in error(ca=authority.ca, cert=cert)
    assert "is not the key of" in error(ca=authority.ca, cert=authority.ca, key=key)


def replace(pair: tuple[Path, Path], by: tuple[Path, Path]) -> None:
    for old, new in zip(pair, by, strict=True):
        new.replace(old)


def test_the_servers_certificates_are_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    pair = old.issue("server")
    options = {"tls_cert": pair[0], "tls_key": pair[1]}
    config = tiny_config()

    async def main() -> None:
        async with (
            running(config, tmp_path / "run", **options) as address,
            old.channel(address) as before,
            new.channel(address) as after,
        ):
            ann, bob = RawClient(config, before, "ann"), RawClient(config, after, "bob")
            await ann.join()
            await refused(bob.join(), CODE.UNAVAILABLE)
            pair[1].write_text("half a key")
            async with old.channel(address) as still:
                await RawClient(config, still, "cleo").join()
            replace(pair, new.issue("server"))
            async with new.channel(address) as again:
                await RawClient(config, again, "dora").join()
            # A connection that is there stays.
            await ann.await_round(0)

    asyncio.run(main())
    said = [record.message for record in caplog.records if "certificates have" in record.message]
    assert len(said) == 2 and "cannot be used" in said[0] and "were read again" in said[1]


def test_a_client_reads_its_certificates_again(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    cert, key = ours.issue("server")
    options = {"tls_cert": cert, "tls_key": key, "client_ca": ours.ca}

    def join(transport: Transport) -> None:
        transport.join("ann", bytes(16), None, wants_partition=False)

    async def main() -> None:
        async with running(tiny_config(), tmp_path / "run", **options) as address:
            pair = others.issue("ann")
            transport = Transport(Address.parse(address), Security(ours.ca, *pair))
            with pytest.raises(ConfigError, match="does not take"):
                await asyncio.to_thread(join, transport)
            replace(pair, ours.issue("ann"))
            with contextlib.suppress(TransportError, ConfigError):
                await asyncio.to_thread(join, transport)
            await asyncio.to_thread(join, transport)
            transport.close()

    asyncio.run(main())


def test_a_certificate_that_ends_soon_is_told_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = CertificateFiles(*Authority(tmp_path).issue("server"), None)
    now = datetime.now(UTC)
    for hours in (0, 1, 23, 25):
        files.remind(now + timedelta(hours=hours))
    soon, over = [record.message for record in caplog.records]
    assert "server.pem expires in 0.0 days: renew it" in soon
    assert "server.pem has expired: nobody can connect anew" in over
