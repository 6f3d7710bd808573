"""`prism certs`: what it makes is what servers and clients take, and nobody else can read it."""

from __future__ import annotations

import asyncio
import re
import stat
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from support import RawClient, refused, running, tiny_config
from typer.testing import CliRunner

from common.errors import ConfigError
from common.pem import CLIENT, SERVER, host_names, read_authorities, read_pair
from prism.certificates import Authority, Subject
from prism.commands.certs import certs


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(certs, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def error(*words: str | Path) -> str:
    result = CliRunner().invoke(certs, [str(word) for word in words])
    assert result.exit_code == 1, result.output
    line = str(result.exception)
    assert line.startswith("prism certs: ") and "\n" not in line
    return line


def test_a_federation_with_certificates_made_both_ways(tmp_path: Path) -> None:
    """The short way for the server, a request and a signature for the client."""
    folder, away = tmp_path / "certs", tmp_path / "hospital"
    run("init", "--dir", folder)
    run("server", "fl.example.org", "127.0.0.1", "::1", "--dir", folder)
    asked = run("request", "ann", "--dir", away)
    signed = run("sign", away / "ann.csr", "--dir", folder)
    fingerprint = re.search(r"fingerprint (\S+)", asked)
    assert fingerprint and fingerprint[1] in signed
    config = tiny_config()
    options = {
        "tls_cert": folder / "fl.example.org.pem",
        "tls_key": folder / "fl.example.org.key",
        "client_ca": folder / "ca.pem",
    }

    async def main() -> None:
        credentials = grpc.ssl_channel_credentials(
            read_authorities(folder / "ca.pem"),
            *reversed(read_pair(away / "ann.pem", away / "ann.key", CLIENT)),
        )
        async with (
            running(config, tmp_path / "run", **options) as address,
            grpc.aio.secure_channel(address, credentials) as channel,
        ):
            await RawClient(config, channel, "ann").join()
            posing = RawClient(config, channel, "bob")
            await refused(posing.join(), grpc.StatusCode.PERMISSION_DENIED)

    asyncio.run(main())


def test_keys_are_private_and_nothing_is_written_over(tmp_path: Path) -> None:
    run("init", "--dir", tmp_path)
    run("server", "localhost", "--dir", tmp_path)
    run("client", "ann", "--dir", tmp_path)
    run("request", "bob", "--dir", tmp_path)
    keys = sorted(tmp_path.glob("*.key"))
    assert [key.stem for key in keys] == ["ann", "bob", "ca", "localhost"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for words in (["init"], ["server", "localhost"], ["client", "ann"], ["request", "bob"]):
        assert "is there already: move it away" in error(*words, "--dir", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_certificate_is_for(tmp_path: Path) -> None:
    run("init", "--dir", tmp_path)
    run("server", "fl.example.org", "192.0.2.7", "--dir", tmp_path)
    run("client", "ann", "--dir", tmp_path)
    server, client = tmp_path / "fl.example.org.pem", tmp_path / "ann.pem"
    read_pair(server, server.with_suffix(".key"), SERVER)
    read_pair(client, client.with_suffix(".key"), CLIENT)
    certificate = x509.load_pem_x509_certificate(server.read_bytes())
    assert host_names(certificate) == ("fl.example.org", "192.0.2.7")
    with pytest.raises(ConfigError, match="not a client's certificate"):
        read_pair(server, server.with_suffix(".key"), CLIENT)
    with pytest.raises(ConfigError, match="not a server's certificate"):
        read_pair(client, client.with_suffix(".key"), SERVER)
    with pytest.raises(ConfigError, match="not of the authority that signed it: prism authority"):
        read_authorities(client)


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    run("init", "--dir", tmp_path, "--days", "10")
    run("client", "ann", "--dir", tmp_path, "--days", "365")
    ends = {
        x509.load_pem_x509_certificate((tmp_path / name).read_bytes()).not_valid_after_utc
        for name in ("ca.pem", "ann.pem")
    }
    assert len(ends) == 1


def test_show(tmp_path: Path) -> None:
    run("init", "--dir", tmp_path, "--name", "our own")
    run("server", "fl.example.org", "192.0.2.7", "--dir", tmp_path, "--days", "30")
    said = run("show", tmp_path / "ca.pem", tmp_path / "fl.example.org.pem")
    assert "authority, our own" in said and "server, fl.example.org" in said
    assert "reached by  fl.example.org, 192.0.2.7" in said and "signed by   our own" in said
    assert "29 days left" in said and "kept private" in said
    (tmp_path / "ca.key").chmod(0o644)
    assert "EVERYBODY HERE CAN READ IT" in run("show", tmp_path / "ca.pem")


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    assert f"run `prism certs init --dir {folder}`" in error("client", "ann", "--dir", folder)
    run("init", "--dir", folder)
    for host in ("https://fl.example.org", "fl.example.org:7070", "[::1]", "300.1.1.1", "a b", ""):
        assert "is no DNS name or IP address" in error("server", host, "--dir", folder)
    for name in ("", "x" * 65, "two\nlines", " ann"):
        assert "a client's name has" in error("client", name, "--dir", folder)
    run("request", "fl.example.org", "--server", "--dir", tmp_path)
    asked = tmp_path / "fl.example.org.csr"
    assert "asks for a server's certificate" in error("sign", asked, "--dir", folder)
    assert "No such file" in error("sign", tmp_path / "none.csr", "--dir", folder)
    assert "is not a request" in error("sign", folder / "ca.pem", "--dir", folder)
    assert "is not a PEM certificate" in error("show", asked)
    run("sign", asked, "--server", "--dir", folder)
    Authority.make(tmp_path / "other", "another", 10)
    (folder / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    assert "ca.key is not the key of" in error("client", "ann", "--dir", folder)
    assert "ann.key" not in {path.name for path in folder.iterdir()}


def test_names_become_plain_file_names() -> None:
    assert Subject.client("../../etc/passwd").stem == "_.._etc_passwd"
    assert Subject.client("St. Mary's / B").stem == "St._Mary_s___B"
    assert Subject.server(["*.example.org"]).stem == "any.example.org"
