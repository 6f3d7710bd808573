"""Addresses and certificates: who may listen where, and who may speak as whom."""

from __future__ import annotations

import asyncio
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
from common.errors import ConfigError
from server.app import serve

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
