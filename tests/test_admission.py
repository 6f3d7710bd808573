"""Who may take part: lists that are read again, tokens, names from certificates."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest
from support import TIMEOUT, RawClient, refused, running, tiny_config
from support_tls import Authority
from typer.testing import CliRunner

from client.messages import Security
from client.transport import Transport
from common.address import Address
from common.errors import ConfigError, NotAdmitted
from common.rpc.prism.v1 import federation_pb2 as pb
from common.tokens import Token, read_proofs
from prism.commands.certs import certs
from server.admission import Admission
from server.app import serve

CODE = grpc.StatusCode


def make_token(folder: Path, name: str) -> Token:
    words = ["token", name, "--add", str(folder / "tokens"), "--dir", str(folder)]
    result = CliRunner().invoke(certs, words)
    assert result.exit_code == 0, result.output
    return Token.read(folder / f"{name}.token")


def test_who_is_taken_off_the_list_is_out_at_once(tmp_path: Path) -> None:
    authority, config = Authority(tmp_path), tiny_config()
    cert, key = authority.issue("server")
    allowed = tmp_path / "allowed"
    allowed.write_text("# who takes part\nann\nbob  # since today\n\n")
    options = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca, "allow": allowed}

    async def main() -> None:
        async with (
            running(config, tmp_path / "run", **options) as address,
            authority.channel(address, *authority.issue("ann")) as hers,
            authority.channel(address, *authority.issue("bob")) as his,
            authority.channel(address, *authority.issue("cleo")) as theirs,
        ):
            ann, bob = RawClient(config, hers, "ann"), RawClient(config, his, "bob")
            cleo = RawClient(config, theirs, "cleo")
            await ann.join()
            await bob.join()
            error = await refused(cleo.join(), CODE.PERMISSION_DENIED)
            assert "cleo may not take part" in (error.details() or "")
            waiting = asyncio.create_task(bob.await_round(20))
            waits = asyncio.create_task(ann.await_round(20))
            await asyncio.sleep(0)
            allowed.write_text("ann\ncleo\n")
            await refused(asyncio.wait_for(waiting, 5), CODE.UNAUTHENTICATED)
            await refused(bob.join(), CODE.PERMISSION_DENIED)
            await refused(bob.await_round(0), CODE.UNAUTHENTICATED)
            await cleo.join()
            assert not waits.done()
            waits.cancel()

    asyncio.run(main())


def test_a_list_that_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = tmp_path / "allowed"
    with pytest.raises(ConfigError, match=r"cannot read .*allowed: No such file"):
        Admission(allowed)
    allowed.write_text("x" * 65)
    with pytest.raises(ConfigError, match="allowed, line 1: a name has 1 to 64"):
        Admission(allowed)
    allowed.write_text("ann\n")
    admission = Admission(allowed)
    for content in (b"\xff\xfe", b"ok\n" + b"x" * 65, b"# nobody\n"):
        allowed.write_bytes(content)
        admission.refresh()
        admission.refresh()
        assert admission.admits("ann") and not admission.admits("ok")
    allowed.unlink()
    admission.refresh()
    admission.refresh()
    assert admission.admits("ann")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4


def test_a_list_is_read_once_it_is_written(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text("ann\nbob\n")
    admission = Admission(allowed)
    for written in ("cleo\n", "cleo\nann\n"):
        allowed.write_text(written)
        admission.refresh()
        assert admission.admits("bob") and not admission.admits("cleo")
    admission.refresh()
    assert not admission.admits("bob") and admission.admits("cleo") and admission.admits("ann")


def test_the_name_is_that_of_the_certificate(tmp_path: Path) -> None:
    authority, config = Authority(tmp_path), tiny_config()
    cert, key = authority.issue("server")
    options = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca}

    async def main() -> list[str]:
        async with (
            running(config, tmp_path / "run", **options) as address,
            authority.channel(address, *authority.issue("ann")) as channel,
        ):
            client = RawClient(config, channel, "")
            await client.join()
            return [known.name for known in (await client.status()).clients]

    assert asyncio.run(main()) == ["ann"]


def test_tokens(tmp_path: Path) -> None:
    authority, config = Authority(tmp_path), tiny_config()
    cert, key = authority.issue("server")
    ann, bob = make_token(tmp_path, "ann"), make_token(tmp_path, "bob")
    tokens = tmp_path / "tokens"
    assert ann.secret not in tokens.read_text()
    assert stat.S_IMODE((tmp_path / "ann.token").stat().st_mode) == 0o600
    options = {"tls_cert": cert, "tls_key": key, "token_file": tokens}

    def join(address: str, name: str, token: str | None) -> None:
        file = None if token is None else tmp_path / f"{token}.token"
        transport = Transport(Address.parse(address), Security(authority.ca, token_file=file))
        try:
            transport.join(name, bytes(16), None, wants_partition=False)
        finally:
            transport.close()

    async def main() -> None:
        async with running(config, tmp_path / "run", **options) as address:
            await asyncio.to_thread(join, address, "ann", "ann")
            for name, token, told in (
                ("ann", None, "give --token-file"),
                ("ann", "bob", "the token is not that of ann"),
                ("eve", "bob", "eve may not take part"),
            ):
                with pytest.raises(NotAdmitted, match=told):
                    await asyncio.to_thread(join, address, name, token)
            async with authority.channel(address) as channel:
                client = RawClient(config, channel, "bob")
                shown = (("prism-token", bob.secret),)
                reply = await client.stub.Join(
                    client.join_request(), timeout=TIMEOUT, metadata=shown
                )
                client.session = reply.session
                await client.await_round(0)
                tokens.write_text(ann.proof)
                await refused(client.await_round(20), CODE.UNAUTHENTICATED)

    asyncio.run(main())


def test_unusable_tokens_are_refused(tmp_path: Path) -> None:
    authority, address = Authority(tmp_path), Address("127.0.0.1", 1)
    cert, key = authority.issue("server")
    make_token(tmp_path, "ann")
    file, tokens = tmp_path / "ann.token", tmp_path / "tokens"

    def start_error(**options: Path) -> str:
        with pytest.raises(ConfigError) as raised:
            asyncio.run(serve(tiny_config(), "127.0.0.1:0", tmp_path / "run", **options))
        return str(raised.value)

    assert "by TLS only" in start_error(token_file=tokens)
    both = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca, "token_file": tokens}
    assert "choose" in start_error(**both)
    assert "tokens, line 1" not in start_error(**{**both, "client_ca": cert})
    with pytest.raises(ConfigError, match="tokens, line 1: a line is NAME and a SHA-256"):
        read_proofs_of(tokens, "ann secret\n")
    with pytest.raises(ConfigError, match="--token-file needs --ca"):
        Transport(address, Security(token_file=file))
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Token.read(file)
    file.write_text("ann short")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="one line, NAME TOKEN"):
        Token.read(file)
    words = ["token", "ann", "--add", str(tmp_path / "more"), "--dir", str(tmp_path)]
    assert "is there already" in str(CliRunner().invoke(certs, words).exception)


def read_proofs_of(path: Path, text: str) -> dict[str, str]:
    path.write_text(text)
    return read_proofs(path)


def test_status_names_clients_to_those_who_take_part(tmp_path: Path) -> None:
    """A caller from another address of this machine stands for one from elsewhere."""
    authority, config = Authority(tmp_path), tiny_config()
    cert, key = authority.issue("server")
    make_token(tmp_path, "ann")
    token = Token.read(tmp_path / "ann.token").secret
    options = {"tls_cert": cert, "tls_key": key, "token_file": tmp_path / "tokens"}

    async def main() -> None:
        async with (
            running(config, tmp_path / "run", **options) as address,
            authority.channel(address) as channel,
        ):
            client = RawClient(config, channel, "ann")
            shown = (("prism-token", token),)
            reply = await client.stub.Join(client.join_request(), timeout=TIMEOUT, metadata=shown)

            async def names(*metadata: tuple[str, str]) -> list[str]:
                request = pb.GetStatusRequest()
                status = await client.stub.GetStatus(request, timeout=TIMEOUT, metadata=metadata)
                return [known.name for known in status.clients]

            assert await names() == ["ann"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Address, "is_loopback", False)
                assert await names() == [""]
                assert await names(("prism-token", "x" * 43)) == [""]
                assert await names(("prism-session", "x")) == [""]
                assert await names(*shown) == ["ann"]
                assert await names(("prism-session", reply.session)) == ["ann"]

    asyncio.run(main())
